"""Cases of the ops for masks and importances of weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import ops
from maskcl.bench.case import Case, bytes_of

_WORD = 32


def _straight(mask: Tensor, scores: Tensor) -> Tensor:
    """The mask; gradients go straight through it to the scores, where they want any."""
    return mask + (scores - scores.detach()) if scores.requires_grad else mask


def weight_masks(n: int, batch: int) -> dict[str, Case]:
    """Masks from scores and weights under them."""
    x, w, b = torch.rand(batch, n), torch.randn(n, n) / n**0.5, torch.randn(n)
    r = torch.randn(n, n)
    size = n * n
    half = (size + 1) // 2

    def picked() -> Tensor:
        return _straight((r > 0.1).float(), r)

    def largest() -> Tensor:
        mask = r.abs() >= r.abs().flatten().kthvalue(size - half + 1).values
        return _straight(mask.float(), r)

    both: dict[str, Any] = {"moved": bytes_of(2 * size), "moved_back": bytes_of(4 * size)}
    return {
        "binarize": Case(lambda: ops.binarize(r, 0.1), picked, (r,), **both),
        "ternarize": Case(
            lambda: ops.ternarize(r, 0.1, symmetric=True),
            lambda: _straight(r.sign() * (r.abs() > 0.1), r),
            (r,),
            **both,
        ),
        "topk_mask": Case(lambda: ops.topk_mask(r, density=half / size), largest, (r,), **both),
        "soft_mask": Case(
            lambda: ops.soft_mask(r, 0.1, scale=2.0),
            lambda: torch.sigmoid(2.0 * (r - 0.1)),
            (r,),
            **both,
        ),
        "kth_largest": Case(
            lambda: ops.kth_largest(r, half),
            lambda: r.flatten().kthvalue(size - half + 1).values,
            moved=bytes_of(size),
        ),
        "piggyback_weight": Case(
            lambda: ops.piggyback_weight(w, r, 0.1),
            lambda: w * picked(),
            (r,),
            moved=bytes_of(3 * size),
            moved_back=bytes_of(6 * size),
        ),
        "piggyback_linear": Case(
            lambda: ops.piggyback_linear(x, w, r, 0.1, b),
            lambda: F.linear(x, w * picked(), b),
            (x, r, b),
            moved=bytes_of(2 * size, 2 * batch * n),
            moved_back=bytes_of(6 * size, 5 * batch * n),
        ),
    }


def _packed(bits: Tensor) -> Tensor:
    """Words of 32 bits each."""
    flat = F.pad(bits.flatten(), (0, -bits.numel() % _WORD)).view(-1, _WORD)
    return (flat.int() << torch.arange(_WORD, dtype=torch.int32, device=bits.device)).sum(
        1, dtype=torch.int32
    )


def packed_bits(n: int, batch: int) -> dict[str, Case]:
    """Bits in words; eager keeps a byte a weight."""
    x, w, b, q = torch.rand(batch, n), torch.randn(n, n), torch.randn(n), torch.rand(n, n) < 0.5
    index = torch.randint(n, (batch,))
    words, other = ops.pack_mask(q), ops.pack_mask(torch.rand(n, n) < 0.5)
    size, packed = n * n, 4 * words.numel()
    three: dict[str, Any] = {"moved": 3 * packed}

    return {
        "pack_mask": Case(lambda: ops.pack_mask(q), lambda: _packed(q), moved=size + packed),
        "unpack_mask": Case(
            lambda: ops.unpack_mask(words, q.shape), q.float, moved=bytes_of(size) + packed
        ),
        "pack_scores": Case(
            lambda: ops.pack_scores(w, 0.1), lambda: _packed(w > 0.1), moved=bytes_of(size) + packed
        ),
        "packed_weight": Case(
            lambda: ops.packed_weight(w, words),
            lambda: w * q,
            (w,),
            moved=bytes_of(2 * size) + packed,
            moved_back=bytes_of(4 * size) + 2 * packed,
        ),
        "packed_linear": Case(
            lambda: ops.packed_linear(x, w, words, b),
            lambda: F.linear(x, w * q, b),
            (x, b),
            moved=bytes_of(size, 2 * batch * n) + packed,
            moved_back=bytes_of(2 * size, 4 * batch * n) + 2 * packed,
        ),
        "packed_embedding": Case(
            lambda: ops.packed_embedding(index, w, words),
            lambda: F.embedding(index, w) * F.embedding(index, q),
            moved=bytes_of(2 * batch * n),
        ),
        "popcount": Case(lambda: ops.popcount(words), q.sum, moved=packed),
        "and_words": Case(lambda: ops.and_words(words, other), lambda: words & other, **three),
        "or_words": Case(lambda: ops.or_words(words, other), lambda: words | other, **three),
        "xor_words": Case(lambda: ops.xor_words(words, other), lambda: words ^ other, **three),
        "andnot_words": Case(
            lambda: ops.andnot_words(words, other), lambda: words & ~other, **three
        ),
    }


def importances(n: int, batch: int) -> dict[str, Case]:
    """Importances of weights, and what they charge."""
    x, d = torch.randn(batch, n), torch.randn(batch, n)
    w, saved, g = (torch.randn(n, n) for _ in range(3))
    k = torch.rand(n, n)
    size = n * n
    products = bytes_of(size, 2 * batch * n)

    def summed() -> Tensor:
        return d.abs().t() @ x.abs()

    def charge() -> Tensor:
        return (k * (w - saved) ** 2).sum()

    def charged() -> Tensor:
        pull = k * (w - saved)
        g.add_(pull)  # 2 * 0.5 of it
        return 0.5 * pull.flatten().dot((w - saved).flatten())

    return {
        "linear_importance": Case(lambda: ops.linear_importance(x, d), summed, moved=products),
        "linear_importance_": Case(
            lambda: ops.linear_importance_(k, x, d),
            lambda: k.addmm_(d.abs().t(), x.abs()),
            written=(k,),
            moved=products + bytes_of(size),
        ),
        "mas_accumulate_": Case(
            lambda: ops.mas_accumulate_([k], [g], 0.5),
            lambda: k.add_(g.abs(), alpha=0.5),
            written=(k,),
            moved=bytes_of(3 * size),
        ),
        "mas_penalty": Case(
            lambda: ops.mas_penalty([w], [saved], [k]),
            charge,
            (w,),
            moved=bytes_of(3 * size),
            moved_back=bytes_of(4 * size),
        ),
        "mas_penalty_grads_": Case(
            lambda: ops.mas_penalty_grads_([g], [w], [saved], [k], 0.5),
            charged,
            written=(g,),
            moved=bytes_of(5 * size),
        ),
    }
