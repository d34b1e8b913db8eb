"""Every public op's call on one element, and the same in plain torch.

The kernels have next to nothing to do: what is left is the call, that is checks, the choice of the
backend, the autograd Function. `bench_calls.py` times both, `instructions.py` counts ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import ops

LR = 0.001


class Call(NamedTuple):
    """An op's call and plain torch's; ``wrt``: by what the result is differentiated."""

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    wrt: tuple[Tensor, ...] = ()


def differentiated(function: Callable[[], Tensor], wrt: tuple[Tensor, ...]) -> Callable[[], Any]:
    """The same call, recorded and gone back through; calls that share these tensors change too."""
    for tensor in wrt:
        tensor.requires_grad_()
    grad = torch.ones_like(function())
    return lambda: torch.autograd.grad(function(), wrt, grad)


def straight(mask: Tensor, scores: Tensor) -> Tensor:
    """The mask; gradients go straight through it to the scores, where they want any."""
    return mask + (scores - scores.detach()) if scores.requires_grad else mask


def unit_masks() -> dict[str, Call]:
    """Gates and layers under masks of units."""
    e, m, b, p = (torch.full((1,), v) for v in (0.5, 0.5, 0.1, 0.25))
    x, w, used = torch.ones(1, 1), torch.ones(1, 1), torch.tensor([False])
    im, f = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    part = float(p)
    return {
        "hat_gate": Call(lambda: ops.hat_gate(e, 2.0), lambda: torch.sigmoid(2.0 * e), (e,)),
        "hat_sparsity": Call(
            lambda: ops.hat_sparsity(m, used), lambda: (m * ~used).sum() / (~used).sum(), (m,)
        ),
        "hat_scale": Call(
            lambda: ops.hat_scale(part, 400.0), lambda: 1 / 400.0 + (400.0 - 1 / 400.0) * part
        ),
        "epoch_progress": Call(lambda: ops.epoch_progress(1, 3), lambda: 1 / 2),
        "task_progress": Call(
            lambda: ops.task_progress(0, 2, 1, 3), lambda: (0 * 3 + 1) / (2 * 3 - 1)
        ),
        "masked_activation": Call(
            lambda: ops.masked_activation(x, m, b), lambda: torch.relu(x + b) * m, (x, m, b)
        ),
        "masked_linear": Call(
            lambda: ops.masked_linear(x, w, m, b),
            lambda: torch.relu(F.linear(x, w, b)) * m,
            (x, w, m, b),
        ),
        "masked_conv": Call(
            lambda: ops.masked_conv(im, f, m, b),
            lambda: torch.relu(F.conv2d(im, f, b)) * m.view(-1, 1, 1),
            (im, f, m, b),
        ),
        "open_conv": Call(lambda: ops.open_conv(im, f, b), lambda: F.conv2d(im, f, b), (im, f, b)),
    }


def protection() -> dict[str, Call]:
    """What spares the weights that finished tasks need."""
    w, g, saved = (torch.full((1, 1), v) for v in (1.0, 0.5, 2.0))
    a, c, step = torch.ones(1), torch.ones(1), torch.tensor(0.0)
    first, second = torch.zeros(1, 1), torch.zeros(1, 1)
    out, inp = torch.tensor([1]), torch.tensor([2])
    sides = [out], [inp]

    def held() -> Tensor:
        return (out[:, None] & inp) != 0

    def adam() -> Tensor:
        step.add_(1)
        first.mul_(0.9).add_(g, alpha=0.1)
        second.mul_(0.999).addcmul_(g, g, value=0.001)
        root = (second / (1 - 0.999**step)).sqrt() + 1e-8
        return w.copy_(torch.where(held(), w, w - LR / (1 - 0.9**step) * first / root))

    return {
        "clamp_grads_": Call(
            lambda: ops.clamp_grads_([g], *sides),
            lambda: g.copy_(torch.where(held(), 0, g)),
        ),
        "clamp_grads_soft_": Call(
            lambda: ops.clamp_grads_soft_([g], [a], [c]),
            lambda: g.mul_(1 - torch.minimum(a[:, None], c)),
        ),
        "restore_protected_": Call(
            lambda: ops.restore_protected_([w], [saved], *sides),
            lambda: w.copy_(torch.where(held(), saved, w)),
        ),
        "sgd_update_": Call(
            lambda: ops.sgd_update_([w], [g], [], *sides, lr=LR),
            lambda: w.copy_(torch.where(held(), w, w - LR * g)),
        ),
        "adam_update_": Call(
            lambda: ops.adam_update_([w], [g], [first], [second], [step], *sides, lr=LR), adam
        ),
        "unprotected_norm": Call(
            lambda: ops.unprotected_norm([g], *sides), lambda: (g * ~held()).norm()
        ),
        "protected_fraction": Call(
            lambda: ops.protected_fraction(out, inp), lambda: held().double().mean().item()
        ),
    }


def weight_masks() -> dict[str, Call]:
    """Masks from scores and weights under them."""
    x, w, b, r = torch.ones(1, 1), torch.ones(1, 1), torch.ones(1), torch.full((1, 1), 0.5)

    def picked() -> Tensor:
        return straight((r > 0.1).float(), r)

    return {
        "binarize": Call(lambda: ops.binarize(r, 0.1), picked, (r,)),
        "ternarize": Call(
            lambda: ops.ternarize(r, 0.1, symmetric=True),
            lambda: straight(r.sign() * (r.abs() > 0.1), r),
            (r,),
        ),
        "topk_mask": Call(
            lambda: ops.topk_mask(r, density=0.5),
            lambda: straight((r.abs() >= r.abs().flatten().sort().values[0]).float(), r),
            (r,),
        ),
        "soft_mask": Call(
            lambda: ops.soft_mask(r, 0.1, scale=2.0), lambda: torch.sigmoid(2.0 * (r - 0.1)), (r,)
        ),
        "kth_largest": Call(
            lambda: ops.kth_largest(r, 1), lambda: r.flatten().sort(descending=True).values[0]
        ),
        "piggyback_weight": Call(
            lambda: ops.piggyback_weight(w, r, 0.1), lambda: w * picked(), (r,)
        ),
        "piggyback_linear": Call(
            lambda: ops.piggyback_linear(x, w, r, 0.1, b),
            lambda: F.linear(x, w * picked(), b),
            (x, r, b),
        ),
    }


def packed_bits() -> dict[str, Call]:
    """Bits in words, 32 a word."""
    x, w, b, q = torch.ones(1, 1), torch.ones(1, 1), torch.ones(1), torch.ones(1, 1).bool()
    index, bit = torch.tensor([0]), torch.arange(1)
    words = ops.pack_mask(q)
    other = words.clone()
    return {
        "pack_mask": Call(lambda: ops.pack_mask(q), lambda: (q[0] << bit).sum().int().view(1)),
        "unpack_mask": Call(lambda: ops.unpack_mask(words, q.shape), q.float),
        "pack_scores": Call(
            lambda: ops.pack_scores(w, 0.1), lambda: ((w > 0.1)[0] << bit).sum().int().view(1)
        ),
        "packed_weight": Call(lambda: ops.packed_weight(w, words), lambda: w * q, (w,)),
        "packed_linear": Call(
            lambda: ops.packed_linear(x, w, words, b), lambda: F.linear(x, w * q, b), (x, b)
        ),
        "packed_embedding": Call(
            lambda: ops.packed_embedding(index, w, words), lambda: F.embedding(index, w * q)
        ),
        "popcount": Call(lambda: ops.popcount(words), q.sum),
        "and_words": Call(lambda: ops.and_words(words, other), lambda: words & other),
        "or_words": Call(lambda: ops.or_words(words, other), lambda: words | other),
        "xor_words": Call(lambda: ops.xor_words(words, other), lambda: words ^ other),
        "andnot_words": Call(lambda: ops.andnot_words(words, other), lambda: words & ~other),
    }


def importances() -> dict[str, Call]:
    """Importances of weights, and what they charge."""
    x, d, w, saved = torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 1)
    k, g, plain_k, plain_g = (torch.ones(1, 1) for _ in range(4))

    def products() -> Tensor:
        return torch.einsum("no,ni->noi", d, x).abs().sum(0)

    def charge() -> Tensor:
        return (k * (w - saved) ** 2).sum()

    def charged() -> Tensor:
        plain_g.add_(2 * 0.5 * k * (w - saved))
        return 0.5 * charge()

    return {
        "linear_importance": Call(lambda: ops.linear_importance(x, d), products),
        "linear_importance_": Call(
            lambda: ops.linear_importance_(k, x, d), lambda: plain_k.add_(products())
        ),
        "mas_accumulate_": Call(
            lambda: ops.mas_accumulate_([k], [g], 0.5), lambda: plain_k.add_(0.5 * g.abs())
        ),
        "mas_penalty": Call(lambda: ops.mas_penalty([w], [saved], [k]), charge, (w,)),
        "mas_penalty_grads_": Call(
            lambda: ops.mas_penalty_grads_([g], [w], [saved], [k], 0.5), charged
        ),
    }


def calls() -> dict[str, Call]:
    """All public ops' calls."""
    parts = unit_masks(), protection(), weight_masks(), packed_bits(), importances()
    return {name: call for part in parts for name, call in part.items()}
