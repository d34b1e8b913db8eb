"""Both sides of a whole model's weights, checked, as the kernels that protect weights take them.

Weight (o, i) lies between two units: row o is its out side, column i its in side. A side is a
tensor with an entry for each unit: a set of tasks as bits, or a soft mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl.ops import _check

Sides = Sequence[Tensor | None]
"""One side of each weight; None where there is no unit to tell of."""


def check_weights(op: str, name: str, weights: Sequence[Tensor], **lists: Sequence[object]) -> None:
    """Raise unless ``weights`` (or gradients) can be one launch, with an entry for each in lists.

    Raises:
        TypeError: one is no floating tensor, or is mixed with float64.
        ValueError: a list is longer or shorter, or one is 0-d or on another device.
    """
    _check.lengths(op, name, weights, **lists)
    for t, weight in enumerate(weights):
        _check.member(op, f"{name}[{t}]", weight, f"{name}[0]", weights[0])
        if weight.dim() < 1:
            raise ValueError(f"{op}: {name}[{t}] is 0-d, wanted [O, I, *] or [O]")


def groups_of(op: str, weights: Sequence[Tensor], groups: Sequence[int] | None) -> list[int]:
    """The groups of each weight's convolution, checked; None: 1 for all.

    Raises:
        ValueError: there is not one for each weight, or it does not divide the rows.
    """
    if groups is None:
        return [1] * len(weights)
    if len(groups) != len(weights):
        raise ValueError(
            f"{op}: groups has {len(groups)} entries, wanted {len(weights)}, one a tensor"
        )
    for t, (weight, number) in enumerate(zip(weights, groups, strict=True)):
        if number < 1 or weight.shape[0] % number:
            raise ValueError(
                f"{op}: groups[{t}] is {number}, wanted a divisor of its {weight.shape[0]} rows"
            )
    return list(groups)


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
    if side.device != weight.device:
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
    if side.dtype != torch.int64 or side.dim() not in (1, 2):
        found = f"{side.dtype} {list(side.shape)}"
        raise TypeError(f"{op}: {name} is {found}, wanted int64 [units] or [units, words]")
    return side.unsqueeze(-1) if side.dim() == 1 else side


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
        pair = ends(weight, out_tasks[t], in_tasks[t], groups[t])
        sides = [task_words(op, f"{end}_tasks[{t}]", side) for end, side, _ in pair]
        num_words = max((s.shape[-1] for s in sides if s is not None), default=1)
        for (end, _, units), side, into in zip(pair, sides, (outs, ins), strict=True):
            if side is None:
                if num_words not in everyone:
                    row = torch.full((1, num_words), -1, dtype=torch.int64, device=weight.device)
                    everyone[num_words] = row
                into.append(everyone[num_words])
                continue
            check_units(op, f"{end}_tasks[{t}]", side, f"{name}[{t}]", weight, units)
            if side.shape[-1] != num_words:
                raise ValueError(
                    f"{op}: {end}_tasks[{t}] has {side.shape[-1]} words, the other side {num_words}"
                )
            into.append(side)
    return outs, ins
