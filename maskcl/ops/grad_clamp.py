"""Gradient protection for a whole model in one call, from task bits or from soft masks.

None of these takes part in autograd: they act on gradients and parameters, in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.reference.grad_clamp import AGGREGATIONS, RULES
from maskcl.schemas import fake

PROTECTIONS = ("exact", "min")
Sides = Sequence[Tensor | None]


@torch.no_grad()
def clamp_grads_(
    grads: Sequence[Tensor],
    out_tasks: Sides,
    in_tasks: Sides,
    *,
    protection: str = "exact",
    rule: str = "hat",
    groups: Sequence[int] | None = None,
    values: float | Sequence[float] = 0.0,
    seed: int = 0,
) -> None:
    """Scale the gradients of protected weights, in place, for a whole model in one call.

    A unit's tasks are a bit set: bit k of ``out_tasks[t][o]`` says that task k uses output unit o.
    None says that every task does (the network's input; the in side of a bias).

    Args:
        grads: list of [O, I, *] (weights) or [O] (biases), floating, one device.
        out_tasks: for each, int64 [O], [O, W] (W words, for more than 64 tasks) or None.
        in_tasks: for each, int64 [groups * I], [groups * I, W] or None; None for a bias.
        protection: "exact": weight (o, i) is protected where some one task uses both of its ends,
            out & in != 0. "min": where each end has a task, the paper's min of the cumulative masks
            (HAT, Serra et al. 2018, eq. 2), which also freezes weights that no one task uses.
        rule: "hat": protected gradients become 0, whatever they were. "const": times ``values``.
            "random": times uniform numbers drawn from ``seed``. "adahat": every gradient times
            r / (n + r), r = ``values``, n the number of tasks that use the weight (AdaHAT, Wang et
            al. 2024).
        groups: of each tensor's convolution; None: 1 for all.
        values: alpha of "const", r of "adahat": one number, or one a tensor.
        seed: of "random"; a new one a step.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "clamp_grads_"
    _check.one_of(op, "protection", protection, PROTECTIONS)
    _check.one_of(op, "rule", rule, RULES)
    groups = _groups(op, grads, groups)
    numbers = [float(values)] * len(grads) if isinstance(values, (int, float)) else list(values)
    _check_lengths(op, "grads", grads, out_tasks=out_tasks, in_tasks=in_tasks, values=numbers)
    if rule == "adahat" and not all(v > 0 for v in numbers):
        raise ValueError(
            f"{op}: values has {min(numbers)}, wanted numbers above 0 for rule 'adahat'"
        )
    outs, ins = _bit_sides(op, "grads", grads, out_tasks, in_tasks, groups)
    if grads:
        run = backends.select(op, grads[0])
        run(list(grads), outs, ins, groups, protection == "exact", rule, numbers, seed)


@torch.no_grad()
def restore_protected_(
    params: Sequence[Tensor],
    saved: Sequence[Tensor],
    out_tasks: Sides,
    in_tasks: Sides,
    *,
    protection: str = "exact",
    groups: Sequence[int] | None = None,
) -> None:
    """Put protected elements back, ``params[t] = saved[t]`` there, in place; others are untouched.

    Args:
        params: list of [O, I, *] or [O], floating, one device.
        saved: for each, a tensor of its shape and dtype.
        out_tasks: as for :func:`clamp_grads_`.
        in_tasks: as for :func:`clamp_grads_`.
        protection: as for :func:`clamp_grads_`.
        groups: as for :func:`clamp_grads_`.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "restore_protected_"
    _check.one_of(op, "protection", protection, PROTECTIONS)
    groups = _groups(op, params, groups)
    _check_lengths(op, "params", params, saved=saved, out_tasks=out_tasks, in_tasks=in_tasks)
    for t, (param, copy) in enumerate(zip(params, saved, strict=True)):
        _check.same_shape(op, f"saved[{t}]", copy, f"params[{t}]", param)
        if copy.dtype != param.dtype:
            raise TypeError(f"{op}: saved[{t}] is {copy.dtype}, wanted params[{t}]'s {param.dtype}")
    outs, ins = _bit_sides(op, "params", params, out_tasks, in_tasks, groups)
    if params:
        run = backends.select(op, params[0])
        run(list(params), list(saved), outs, ins, groups, protection == "exact")


@torch.no_grad()
def clamp_grads_soft_(
    grads: Sequence[Tensor],
    out_masks: Sides,
    in_masks: Sides,
    *,
    aggregation: str = "min",
    groups: Sequence[int] | None = None,
) -> None:
    """grads[t] *= 1 - agg(out_masks[t][o], in_masks[t][i]), in place: the paper's float masks.

    Args:
        grads: list of [O, I, *] or [O], floating, one device.
        out_masks: for each, the cumulative mask of its rows, floating [O] in [0, 1], or None.
        in_masks: for each, that of its columns, floating [groups * I], or None. Where one side is
            None only the other counts; where both are, nothing changes.
        aggregation: "min" (HAT, eq. 2), "max" or "mean" (CLArena's alternatives).
        groups: of each tensor's convolution; None: 1 for all.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "clamp_grads_soft_"
    _check.one_of(op, "aggregation", aggregation, AGGREGATIONS)
    groups = _groups(op, grads, groups)
    _check_lengths(op, "grads", grads, out_masks=out_masks, in_masks=in_masks)
    for t, grad in enumerate(grads):
        _check.floating(op, f"grads[{t}]", grad)
        for name, side, units in _ends(grad, out_masks[t], in_masks[t], groups[t]):
            if side is None:
                continue
            _check.floating(op, f"{name}_masks[{t}]", side)
            _check_units(op, f"{name}_masks[{t}]", side, f"grads[{t}]", grad, units)
    if grads:
        none = grads[0].new_empty(0, dtype=torch.float32)
        outs = [none if side is None else side for side in out_masks]
        ins = [none if side is None else side for side in in_masks]
        backends.select(op, grads[0])(list(grads), outs, ins, groups, aggregation)


def protected_fraction(
    out_tasks: Tensor | None,
    in_tasks: Tensor | None,
    *,
    protection: str = "exact",
) -> float:
    """Share of a layer's weights (o, i) that is protected, counted without a dense mask.

    Args:
        out_tasks: int64 [O], [O, W], or None for every task.
        in_tasks: int64 [I], [I, W], or None for every task.
        protection: as for :func:`clamp_grads_`.

    Returns:
        A number from 0 to 1; synchronises with the device. NaN for a layer without weights.
    """
    _check.one_of("protected_fraction", "protection", protection, PROTECTIONS)
    sides = [_words("protected_fraction", s) for s in (out_tasks, in_tasks)]
    words = max((s.shape[-1] for s in sides if s is not None), default=1)
    counted = []
    for side in sides:
        if side is None:
            like = next((s for s in sides if s is not None), torch.zeros(1, 1, dtype=torch.int64))
            side = like.new_full((1, words), -1)
        counted.append(torch.unique(side, dim=0, return_counts=True))
    (out_sets, out_counts), (in_sets, in_counts) = counted
    if protection == "exact":
        together = ((out_sets[:, None] & in_sets[None]) != 0).any(-1)
    else:
        together = (out_sets != 0).any(-1)[:, None] & (in_sets != 0).any(-1)[None]
    pairs = out_counts[:, None] * in_counts[None]
    total = int(pairs.sum())
    return int((pairs * together).sum()) / total if total else float("nan")


def _groups(op: str, tensors: Sequence[Tensor], groups: Sequence[int] | None) -> list[int]:
    if groups is None:
        return [1] * len(tensors)
    if len(groups) != len(tensors):
        raise ValueError(
            f"{op}: groups has {len(groups)} entries, wanted {len(tensors)}, one a tensor"
        )
    for t, (tensor, number) in enumerate(zip(tensors, groups, strict=True)):
        if number < 1 or tensor.shape[0] % number:
            raise ValueError(
                f"{op}: groups[{t}] is {number}, wanted a divisor of its {tensor.shape[0]} rows"
            )
    return list(groups)


def _check_lengths(
    op: str, name: str, tensors: Sequence[Tensor], **lists: Sequence[object]
) -> None:
    for other, entries in lists.items():
        if len(entries) != len(tensors):
            raise ValueError(
                f"{op}: {other} has {len(entries)} entries, wanted {name}'s {len(tensors)}"
            )
    for t, tensor in enumerate(tensors):
        _check.floating(op, f"{name}[{t}]", tensor)
        if tensor.dim() < 1:
            raise ValueError(f"{op}: {name}[{t}] is 0-d, wanted [O, I, *] or [O]")
        _check.same_device(op, f"{name}[{t}]", tensor, f"{name}[0]", tensors[0])
        if tensor.dtype != tensors[0].dtype and torch.float64 in (tensor.dtype, tensors[0].dtype):
            raise TypeError(f"{op}: {name}[{t}] is {tensor.dtype}, wanted no mixture with float64")


def _ends(
    tensor: Tensor, out_side: Tensor | None, in_side: Tensor | None, groups: int
) -> tuple[tuple[str, Tensor | None, int], tuple[str, Tensor | None, int]]:
    columns = tensor.shape[1] * groups if tensor.dim() > 1 else 1
    return ("out", out_side, tensor.shape[0]), ("in", in_side, columns)


def _check_units(op: str, name: str, side: Tensor, of: str, tensor: Tensor, units: int) -> None:
    _check.same_device(op, name, side, of, tensor)
    if side.shape[0] != units:
        what = "rows" if name.startswith("out") else "columns (times groups)"
        raise ValueError(f"{op}: {name} has {side.shape[0]} units, {of} has {units} {what}")


def _words(op: str, side: Tensor | None, name: str = "a side") -> Tensor | None:
    """A side as [units, W]."""
    if side is None:
        return None
    if side.dtype != torch.int64 or side.dim() not in (1, 2):
        found = f"{side.dtype} {list(side.shape)}"
        raise TypeError(f"{op}: {name} is {found}, wanted int64 [units] or [units, words]")
    return side.unsqueeze(-1) if side.dim() == 1 else side


def _bit_sides(
    op: str,
    name: str,
    tensors: Sequence[Tensor],
    out_tasks: Sides,
    in_tasks: Sides,
    groups: Sequence[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """Both sides as the kernels take them: [units, W], and one row of -1 for every task."""
    outs: list[Tensor] = []
    ins: list[Tensor] = []
    everyone: dict[int, Tensor] = {}
    for t, tensor in enumerate(tensors):
        ends = _ends(tensor, out_tasks[t], in_tasks[t], groups[t])
        sides = [_words(op, side, f"{end}_tasks[{t}]") for end, side, _ in ends]
        words = max((s.shape[-1] for s in sides if s is not None), default=1)
        for (end, _, units), side, into in zip(ends, sides, (outs, ins), strict=True):
            if side is None:
                if words not in everyone:
                    full = torch.full((1, words), -1, dtype=torch.int64, device=tensor.device)
                    everyone[words] = full
                into.append(everyone[words])
                continue
            _check_units(op, f"{end}_tasks[{t}]", side, f"{name}[{t}]", tensor, units)
            if side.shape[-1] != words:
                raise ValueError(
                    f"{op}: {end}_tasks[{t}] has {side.shape[-1]} words, the other side {words}"
                )
            into.append(side)
    return outs, ins


@fake("clamp_grads_")
def _(
    grads: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
    rule: str,
    values: list[float],
    seed: int,
) -> None:
    return None


@fake("restore_protected_")
def _(
    params: list[Tensor],
    saved: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
) -> None:
    return None


@fake("clamp_grads_soft_")
def _(
    grads: list[Tensor],
    out_masks: list[Tensor],
    in_masks: list[Tensor],
    groups: list[int],
    aggregation: str,
) -> None:
    return None
