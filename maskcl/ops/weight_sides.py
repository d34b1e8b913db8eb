"""Both sides of a whole model's weights, checked, as the kernels that protect weights take them.

Weight (o, i) lies between two units: row o is its out side, column i its in side. A side is a
tensor with an entry for each unit: a set of tasks as bits, or a soft mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl.ops import _check
from maskcl.ops._lists import lengths, listed, member
from maskcl.ops._numbers import integer, number
from maskcl.shards import is_sharded

Sides = Sequence[Tensor | None]
"""One side of each weight; None where there is no unit to tell of."""


def check_weights(op: str, name: str, weights: Sequence[Tensor], **lists: Sequence[object]) -> None:
    """Raise unless ``weights`` (or gradients) can be one launch, with an entry for each in lists.

    Raises:
        TypeError: one is no floating tensor, or is mixed with float64.
        ValueError: a list is longer or shorter, or one is 0-d or on another device.
    """
    lengths(op, name, weights, **lists)
    if _are_plain(weights):
        return
    for t, weight in enumerate(weights):
        _check.floating(op, f"{name}[{t}]", weight)
        member(op, f"{name}[{t}]", weight, f"{name}[0]", weights[0])
        if weight.dim() < 1:
            raise ValueError(f"{op}: {name}[{t}] is 0-d, wanted [O, I, *] or [O]")


def _are_plain(weights: Sequence[Tensor]) -> bool:
    """Whether nothing is wrong with any of them, asked briefly; False: perhaps something is."""
    if not weights:
        return True
    try:
        device, dtype = weights[0].device, weights[0].dtype
        if dtype not in _check.FLOATS:
            return False
        for weight in weights:
            if weight.dtype is not dtype or weight.layout is not torch.strided:
                return False
            if weight.device != device or weight.dim() < 1 or weight.is_nested:
                return False
            if is_sharded(weight):
                return False
    except AttributeError:  # one is no tensor
        return False
    return True


def groups_of(op: str, weights: Sequence[Tensor], groups: Sequence[int] | None) -> list[int]:
    """The groups of each weight's convolution, checked; None: 1 for all.

    Raises:
        TypeError: they are no list of ints.
        ValueError: there is not one for each weight, or it does not divide the rows.
    """
    if groups is None:
        return [1] * len(weights)
    found = listed(op, "groups", groups)
    if len(found) != len(weights):
        raise ValueError(
            f"{op}: groups has {len(found)} entries, wanted {len(weights)}, one a tensor"
        )
    for t, weight in enumerate(weights):
        count = integer(op, f"groups[{t}]", found[t])
        if count < 1 or weight.shape[0] % count:
            raise ValueError(
                f"{op}: groups[{t}] is {count}, wanted a divisor of its {weight.shape[0]} rows"
            )
        found[t] = count
    return found


def values_of(op: str, values: float | Sequence[float], weights: Sequence[Tensor]) -> list[float]:
    """A number a weight, from one for each or one for all.

    Raises:
        TypeError, ValueError: one is no number, or not finite.
    """
    if isinstance(values, (list, tuple)):
        return [number(op, f"values[{t}]", v, torch.float32) for t, v in enumerate(values)]
    return [number(op, "values", values, torch.float32)] * len(weights)


def seed_of(op: str, seed: int) -> int:
    """The seed in 64 bits with a sign: ``torch.initial_seed()`` and the like have them without.

    Raises:
        TypeError, ValueError: it is no int, or of more bits.
    """
    seed = integer(op, "seed", seed, -(1 << 63), (1 << 64) - 1)
    return seed if seed < 1 << 63 else seed - (1 << 64)


def ends(
    weight: Tensor, out_side: Tensor | None, in_side: Tensor | None, groups: int
) -> tuple[tuple[str, Tensor | None, int], tuple[str, Tensor | None, int]]:
    """For out and in: the word, the side itself, and how many units it must have."""
    columns = weight.shape[1] * groups if weight.dim() > 1 else 1
    return ("out", out_side, weight.shape[0]), ("in", in_side, columns)


def check_units(
    op: str, name: str, side: Tensor, other_name: str, weight: Tensor, units: int
) -> None:
    """Raise ValueError unless ``side`` is on the weight's device and has so many units."""
    _check.same_device(op, name, side, other_name, weight)
    if side.shape[0] != units:
        what = "rows" if name.startswith("out") else "columns (times groups)"
        raise ValueError(f"{op}: {name} has {side.shape[0]} units, {other_name} has {units} {what}")


def task_words(op: str, name: str, side: Tensor | None) -> Tensor | None:
    """A side of task bits as [units, W], 64 tasks a word; None stays.

    Raises:
        TypeError: it is not int64 [units] or [units, W].
    """
    if side is None:
        return None
    _check.dense(op, name, side)
    if side.dtype != torch.int64 or side.dim() not in (1, 2):
        found = f"{side.dtype} {list(side.shape)}"
        raise TypeError(f"{op}: {name} is {found}, wanted int64 [units] or [units, words]")
    return side.unsqueeze(-1) if side.dim() == 1 else side


def check_words_agree(op: str, name: str, side: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both sides are on one device and have as many words a unit."""
    _check.same_device(op, name, side, other_name, other)
    found, wanted = side.shape[-1], other.shape[-1]
    if found != wanted:
        raise ValueError(f"{op}: {name} has {found} words, {other_name} has {wanted}")


def task_sides(
    op: str,
    name: str,
    weights: Sequence[Tensor],
    out_tasks: Sides,
    in_tasks: Sides,
    groups: Sequence[int],
) -> tuple[list[Tensor], list[Tensor]]:
    """Both sides of each weight as [units, W]; one row of -1 where every task uses the side.

    Raises:
        TypeError, ValueError: a side is no int64 bits, has other units than its weight or other
            words than the other side, or lies on another device.
    """
    outs: list[Tensor] = []
    ins: list[Tensor] = []
    everyone: dict[int, Tensor] = {}
    for t, weight in enumerate(weights):
        out_end, in_end = ends(weight, out_tasks[t], in_tasks[t], groups[t])
        out_side = _words_of(op, name, t, weight, *out_end)
        in_side = _words_of(op, name, t, weight, *in_end)
        if out_side is None or in_side is None:
            known = in_side if out_side is None else out_side
            count = 1 if known is None else known.shape[-1]
            if count not in everyone:
                row = torch.full((1, count), -1, dtype=torch.int64, device=weight.device)
                everyone[count] = row
            out_side = everyone[count] if out_side is None else out_side
            in_side = everyone[count] if in_side is None else in_side
        elif out_side.shape[-1] != in_side.shape[-1]:
            check_words_agree(op, f"in_tasks[{t}]", in_side, f"out_tasks[{t}]", out_side)
        outs.append(out_side)
        ins.append(in_side)
    return outs, ins


def _words_of(
    op: str, name: str, t: int, weight: Tensor, end: str, side: Tensor | None, units: int
) -> Tensor | None:
    """One end of weight ``t`` as [units, W], checked; None stays."""
    if side is None:
        return None
    plain = isinstance(side, Tensor) and side.dtype is torch.int64
    plain = plain and side.layout is torch.strided and not side.is_nested
    plain = plain and side.device == weight.device and not is_sharded(side)
    if not (plain and side.dim() in (1, 2) and side.shape[0] == units):
        label = f"{end}_tasks[{t}]"
        task_words(op, label, side)
        check_units(op, label, side, f"{name}[{t}]", weight, units)
    return side.unsqueeze(-1) if side.dim() == 1 else side


def check_soft_sides(
    op: str,
    name: str,
    weights: Sequence[Tensor],
    out_masks: Sides,
    in_masks: Sides,
    groups: Sequence[int],
) -> None:
    """Raise unless both sides of each weight are soft masks of its units, or None.

    Raises:
        TypeError: one is no floating tensor.
        ValueError: one is not [units], or lies on another device.
    """
    for t, weight in enumerate(weights):
        for end, side, units in ends(weight, out_masks[t], in_masks[t], groups[t]):
            if side is None or _is_soft(side, units, weight):
                continue
            label = f"{end}_masks[{t}]"
            _check.floating(op, label, side)
            _check.dimensions(op, label, side, 1)
            check_units(op, label, side, f"{name}[{t}]", weight, units)


def _is_soft(side: Tensor, units: int, weight: Tensor) -> bool:
    """Whether nothing is wrong with a soft mask, asked briefly."""
    return _check.is_floating(side) and side.device == weight.device and side.shape == (units,)
