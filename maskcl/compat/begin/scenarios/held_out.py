"""Which of a task's training samples train, and which validate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.scenarios import Scenario

# Of a task's training samples of each class, in hundredths; at least one.
VALIDATION_PERCENT = 10


def held_out(scenario: Scenario, seed: int) -> tuple[list[Tensor], list[Tensor]]:
    """For each task, int64 rows of its training set that train and that validate.

    Args:
        scenario: the tasks.
        seed: of the draw; each task has its own.
    """
    train: list[Tensor] = []
    val: list[Tensor] = []
    for task in range(scenario.num_tasks):
        found: Any = scenario.train_set(task)
        labels = torch.zeros(len(found)) if found.labels is None else found.labels
        chance = torch.Generator().manual_seed(seed + task)
        held = torch.zeros(len(found), dtype=torch.bool)
        for label in labels.unique():
            rows = torch.nonzero(labels == label).flatten()
            rows = rows[torch.randperm(len(rows), generator=chance)]
            count = min(max(1, len(rows) * VALIDATION_PERCENT // 100), len(rows) - 1)
            held[rows[:count]] = True
        val.append(torch.nonzero(held).flatten())
        train.append(torch.nonzero(~held).flatten())
    return train, val
