"""Cases of the ops for masks of units."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import ops
from maskcl.bench.case import OPEN, USED, Case, bytes_of, units

LR = 1e-3


def unit_masks(n: int, batch: int) -> dict[str, Case]:
    """Gates and layers under masks of units."""
    e, b = 0.5 * torch.randn(n), 0.1 * torch.randn(n)
    m = torch.rand(n).clamp_(0.1) * units(n, OPEN)
    x, w = torch.rand(batch, n), torch.randn(n, n) / n**0.5
    used = units(n, USED) if n > 1 else torch.tensor([False])
    rows, weights = batch * n, n * n
    linear = bytes_of(2 * rows, weights)
    return {
        "hat_gate": Case(
            lambda: ops.hat_gate(e, 2.0),
            lambda: torch.sigmoid(2.0 * e),
            (e,),
            moved=bytes_of(2 * n),
            moved_back=bytes_of(5 * n),
        ),
        "hat_sparsity": Case(
            lambda: ops.hat_sparsity(m, used),
            lambda: (m * ~used).sum() / (~used).sum(),
            (m,),
            moved=5 * n,
            moved_back=10 * n,
        ),
        "hat_scale": Case(
            lambda: ops.hat_scale(0.25, 400.0), lambda: 1 / 400.0 + (400.0 - 1 / 400.0) * 0.25
        ),
        "epoch_progress": Case(lambda: ops.epoch_progress(1, 3), lambda: 1 / 2),
        "task_progress": Case(
            lambda: ops.task_progress(0, 2, 1, 3), lambda: (0 * 3 + 1) / (2 * 3 - 1)
        ),
        "masked_activation": Case(
            lambda: ops.masked_activation(x, m, b, activation="relu"),
            lambda: torch.relu(x + b) * m,
            (x, m, b),
            moved=bytes_of(2 * rows),
            moved_back=bytes_of(5 * rows),
        ),
        "masked_linear": Case(
            lambda: ops.masked_linear(x, w, m, b, activation="relu"),
            lambda: torch.relu(F.linear(x, w, b)) * m,
            (x, w, m, b),
            moved=linear,
            moved_back=bytes_of(6 * rows, 3 * weights),
        ),
        **_convolutions(n, batch),
    }


def _convolutions(n: int, batch: int) -> dict[str, Case]:
    c, side, k = (max(1, n // 16), 14, 3) if n > 1 else (1, 1, 1)
    last = torch.channels_last
    m, b = torch.rand(c).clamp_(0.1) * units(c, OPEN), 0.1 * torch.randn(c)
    f = (torch.randn(c, c, k, k) / (k * k * c) ** 0.5).contiguous(memory_format=last)
    im = (torch.rand(batch, c, side, side) * units(c, OPEN).view(-1, 1, 1)).contiguous(
        memory_format=last
    )
    ins, outs = im.numel(), batch * c * (side - k + 1) ** 2
    moved, back = bytes_of(ins, outs, f.numel()), bytes_of(3 * ins, 3 * outs, 3 * f.numel())
    return {
        "masked_conv": Case(
            lambda: ops.masked_conv(im, f, m, b, activation="relu"),
            lambda: torch.relu(F.conv2d(im, f, b)) * m.view(-1, 1, 1),
            (im, f, m, b),
            moved=moved,
            moved_back=back,
        ),
        "open_conv": Case(
            lambda: ops.open_conv(im, f, b),
            lambda: F.conv2d(im, f, b),
            (im, f, b),
            moved=moved,
            moved_back=back,
        ),
    }


def protection(n: int, batch: int) -> dict[str, Case]:
    """What spares the weights that finished tasks need."""
    w, g, saved = (torch.randn(n, n) for _ in range(3))
    a, c = (units(n, USED).float() for _ in range(2))  # applied again and again, g stays normal
    out, inp = (units(n, USED).long() for _ in range(2))
    held = (out[:, None] & inp) != 0
    free, soft = (~held).float(), 1 - torch.minimum(a[:, None], c)
    left = int(free.sum())  # what is protected need not be touched by a step
    sides = [out], [inp]
    return {
        "clamp_grads_": Case(
            lambda: ops.clamp_grads_([g], *sides),
            lambda: g.mul_(free),
            written=(g,),
            moved=bytes_of(n * n - left),
        ),
        "clamp_grads_soft_": Case(
            lambda: ops.clamp_grads_soft_([g], [a], [c]),
            lambda: g.mul_(soft),
            written=(g,),
            moved=bytes_of(2 * n * n),
        ),
        "restore_protected_": Case(
            lambda: ops.restore_protected_([w], [saved], *sides),
            lambda: torch.where(held, saved, w, out=w),
            written=(w,),
            moved=bytes_of(2 * (n * n - left)),
            formula=lambda: w.copy_(torch.where(held, saved, w)),
        ),
        "unprotected_norm": Case(
            lambda: ops.unprotected_norm([g], *sides),
            lambda: (g * free).norm(),
            moved=bytes_of(left),
        ),
        "protected_fraction": Case(
            lambda: ops.protected_fraction(out, inp),
            lambda: ((out[:, None] & inp) != 0).double().mean().item(),
            moved=16 * n,
        ),
        **_updates(w, g, free, sides, left),
    }


def _updates(
    w: Tensor, g: Tensor, free: Tensor, sides: tuple[list[Tensor], list[Tensor]], left: int
) -> dict[str, Case]:
    """Steps of optimizers; eager clamps and has torch's fused one step."""
    first, second, step = torch.zeros_like(w), torch.zeros_like(w), torch.tensor(0.0)
    parameter = torch.nn.Parameter(w)  # the same memory
    parameter.grad = g
    sgd = torch.optim.SGD([parameter], lr=LR, fused=True)
    adam = torch.optim.Adam([parameter], lr=LR, fused=True)
    adam.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}

    def clamped(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def stepped() -> None:
            g.mul_(free)
            optimizer.step()

        return stepped

    def adam_formula() -> Tensor:
        step.add_(1)
        masked = g * free
        first.lerp_(masked, 0.1)
        second.mul_(0.999).addcmul_(masked, masked, value=0.001)
        root = (second / (1 - 0.999**step)).sqrt() + 1e-8
        return w.sub_(LR / (1 - 0.9**step) * first / root)

    return {
        "sgd_update_": Case(
            lambda: ops.sgd_update_([w], [g], [], *sides, lr=LR),
            clamped(sgd),
            written=(w,),
            moved=bytes_of(3 * left),
            formula=lambda: w.addcmul_(g, free, value=-LR),
        ),
        "adam_update_": Case(
            lambda: ops.adam_update_([w], [g], [first], [second], [step], *sides, lr=LR),
            clamped(adam),
            written=(w, first, second),
            moved=bytes_of(7 * left),
            formula=adam_formula,
        ),
    }
