"""Gradient protection for a whole model in one call, from task bits or from soft masks.

None of these takes part in autograd: they act on gradients and parameters, in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl import backends
from maskcl.grad_mode import without_gradients
from maskcl.ops import _check
from maskcl.ops._lists import check_like, check_written, listed
from maskcl.ops.protected_pairs import protected_pairs
from maskcl.ops.weight_sides import (
    Sides,
    check_soft_sides,
    check_weights,
    check_words_agree,
    groups_of,
    seed_of,
    task_sides,
    task_words,
    values_of,
)
from maskcl.reference.grad_clamp import AGGREGATIONS, RULES
from maskcl.schemas import fake

PROTECTIONS = ("exact", "min")


@without_gradients
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
    seed = seed_of(op, seed)
    grads = listed(op, "grads", grads)
    outs, ins = listed(op, "out_tasks", out_tasks), listed(op, "in_tasks", in_tasks)
    numbers = values_of(op, values, grads)
    check_weights(op, "grads", grads, out_tasks=outs, in_tasks=ins, values=numbers)
    groups = groups_of(op, grads, groups)
    if rule == "adahat" and not all(v > 0 for v in numbers):
        raise ValueError(
            f"{op}: values has {min(numbers)}, wanted numbers above 0 for rule 'adahat'"
        )
    outs, ins = task_sides(op, "grads", grads, outs, ins, groups)
    check_written(op, "grads", grads)
    if grads:
        run = backends.select(op, grads[0])
        run(grads, outs, ins, groups, protection == "exact", rule, numbers, seed)


@without_gradients
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
    params, saved = listed(op, "params", params), listed(op, "saved", saved)
    outs, ins = listed(op, "out_tasks", out_tasks), listed(op, "in_tasks", in_tasks)
    check_weights(op, "params", params, saved=saved, out_tasks=outs, in_tasks=ins)
    groups = groups_of(op, params, groups)
    check_like(op, "saved", saved, "params", params)
    outs, ins = task_sides(op, "params", params, outs, ins, groups)
    check_written(op, "params", params, saved=saved)
    if params:
        run = backends.select(op, params[0])
        run(params, saved, outs, ins, groups, protection == "exact")


@without_gradients
def clamp_grads_soft_(
    grads: Sequence[Tensor],
    out_masks: Sides,
    in_masks: Sides,
    *,
    aggregation: str = "min",
    groups: Sequence[int] | None = None,
) -> None:
    """``grads[t] *= 1 - agg(out_masks[t][o], in_masks[t][i])``, in place: the paper's float masks.

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
    grads = listed(op, "grads", grads)
    outs, ins = listed(op, "out_masks", out_masks), listed(op, "in_masks", in_masks)
    check_weights(op, "grads", grads, out_masks=outs, in_masks=ins)
    groups = groups_of(op, grads, groups)
    check_soft_sides(op, "grads", grads, outs, ins, groups)
    check_written(op, "grads", grads, out_masks=outs, in_masks=ins)
    if grads:
        none = grads[0].new_empty(0, dtype=torch.float32)
        outs, ins = ([none if side is None else side for side in sides] for sides in (outs, ins))
        backends.select(op, grads[0])(grads, outs, ins, groups, aggregation)


def protected_fraction(
    out_tasks: Tensor | None,
    in_tasks: Tensor | None,
    *,
    protection: str = "exact",
) -> float:
    """Share of a layer's weights (o, i) that is protected, counted without a dense mask.

    Units that the same tasks use count as one, and pairs of these in blocks: beside the words, it
    takes a few MB for any layer and any number of tasks.

    Args:
        out_tasks: int64 [O], [O, W], or None for every task.
        in_tasks: int64 [I], [I, W], or None for every task.
        protection: as for :func:`clamp_grads_`.

    Returns:
        A number from 0 to 1; synchronises with the device. NaN for a layer without weights.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "protected_fraction"
    _check.one_of(op, "protection", protection, PROTECTIONS)
    sides = task_words(op, "out_tasks", out_tasks), task_words(op, "in_tasks", in_tasks)
    first, second = sides
    if first is not None and second is not None:
        check_words_agree(op, "in_tasks", second, "out_tasks", first)
    num_words = max((s.shape[-1] for s in sides if s is not None), default=1)
    counted = []
    for side in sides:
        if side is None:
            like = next((s for s in sides if s is not None), torch.zeros(1, 1, dtype=torch.int64))
            side = like.new_full((1, num_words), -1)
        counted.append(torch.unique(side, dim=0, return_counts=True))
    (out_sets, out_counts), (in_sets, in_counts) = counted
    total = int(out_counts.sum() * in_counts.sum())
    if not total:
        return float("nan")
    sets = out_sets[None], in_sets[None]
    counts = {"out_counts": out_counts[None], "in_counts": in_counts[None]}
    return protected_pairs(*sets, protection == "exact", **counts) / total


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
