"""How many pairs of units some task uses both of, counted in blocks."""

from __future__ import annotations

import torch
from torch import Tensor

# Pairs at a time: on a CPU they stay in a core's cache, elsewhere a call should have enough to do.
_CPU_BLOCK, _BLOCK = 1 << 16, 1 << 22


def protected_pairs(
    out_tasks: Tensor,
    in_tasks: Tensor,
    exact: bool,
    *,
    out_counts: Tensor | None = None,
    in_counts: Tensor | None = None,
) -> int:
    """Pairs (o, i) of each group that are protected; waits for the device.

    Args:
        out_tasks: int64 [G, O, W], bit sets of tasks.
        in_tasks: int64 [G, I, W].
        exact: one task uses both; else each has a task.
        out_counts: int64 [G, O], how many units a row stands for; None: one.
        in_counts: int64 [G, I], likewise.
    """
    ones = torch.ones((), dtype=torch.int64, device=out_tasks.device)
    rows = ones.expand(out_tasks.shape[:2]) if out_counts is None else out_counts
    columns = ones.expand(in_tasks.shape[:2]) if in_counts is None else in_counts
    if not exact:
        used = [((out_tasks != 0).any(-1), rows), ((in_tasks != 0).any(-1), columns)]
        sums = [torch.where(any_task, number, 0).sum(1) for any_task, number in used]
        return int((sums[0] * sums[1]).sum())
    # Words in which a side has no task say nothing; the others lie one behind the other.
    tells = (out_tasks != 0).flatten(0, 1).any(0) & (in_tasks != 0).flatten(0, 1).any(0)
    words = tells.nonzero().flatten().tolist()
    outs = [out_tasks[..., word].contiguous() for word in words]
    ins = [in_tasks[..., word].contiguous() for word in words]
    groups, height, width = *out_tasks.shape[:2], in_tasks.shape[1]
    block = _CPU_BLOCK if out_tasks.device.type == "cpu" else _BLOCK
    many = max(1, block // max(1, height * width))
    tall = height if many > 1 else max(1, block // max(1, width))
    total = torch.zeros((), dtype=torch.int64, device=out_tasks.device)
    for group in range(0, groups if words else 0, many):
        some = slice(group, group + many)
        sides = [into[some, None] for into in ins]
        for first in range(0, height, max(1, tall)):
            part = some, slice(first, first + tall)
            shared = outs[0][part][..., None] & sides[0]
            for out, into in zip(outs[1:], sides[1:], strict=True):
                shared |= out[part][..., None] & into
            found = torch.where(shared != 0, columns[some, None], 0).sum(-1)
            total += (found * rows[part]).sum()
    return int(total)
