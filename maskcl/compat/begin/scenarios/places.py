"""Where tasks' samples are in a dataset, and their predictions in a split's."""

from __future__ import annotations

import torch
from torch import Tensor

# By split and task, int64 places among the split's predictions.
Places = dict[str, dict[int, Tensor]]


def flags(count: int, rows: Tensor) -> Tensor:
    """bool [count], true at ``rows``."""
    found = torch.zeros(count, dtype=torch.bool)
    found[rows] = True
    return found


def places_of(mask: Tensor, rows: dict[int, Tensor]) -> dict[int, Tensor]:
    """Where each task's rows are among those that a mask chooses."""
    place = mask.cumsum(0) - 1
    return {task: place[found] for task, found in rows.items()}


def in_a_row(sizes: dict[int, int]) -> dict[int, Tensor]:
    """Places of tasks' samples that follow each other."""
    places, start = {}, 0
    for task, size in sizes.items():
        places[task] = torch.arange(start, start + size)
        start += size
    return places
