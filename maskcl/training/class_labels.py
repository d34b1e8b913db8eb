"""Labels of the class setting, and those of heads that have their own task's classes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.scenarios.labels import local_labels
from maskcl.settings import Setting


class ClassLabels:
    """Between a scenario's labels, counted over all tasks, and the outputs of each task's head.

    Args:
        classes: by task, ids in the order of the head's outputs.
        setting: the class setting.
    """

    def __init__(self, classes: Sequence[Sequence[int]], setting: Setting) -> None:
        parts = [list(part) for part in classes]
        tables = local_labels(parts, setting)
        self.sizes = [len(part) for part in parts]
        named = [
            [table[label] for label in part] for table, part in zip(tables, parts, strict=True)
        ]
        count = 1 + max(label for part in named for label in part)
        self._named = torch.zeros(len(parts), max(self.sizes), dtype=torch.int64)
        self._own = torch.full((len(parts), count), -1, dtype=torch.int64)
        for task, part in enumerate(named):
            self._named[task, : len(part)] = torch.tensor(part)
            self._own[task, part] = torch.arange(len(part))

    def batch(self, task: int, batch: Any) -> Any:
        """A training batch, its target last, with the head's labels in the scenario's place."""
        target = self._own[task].to(batch[-1].device)[batch[-1]]
        if hasattr(batch, "_fields"):
            return type(batch)(*batch[:-1], target)
        return (*batch[:-1], target)

    def of_scenario(self, task: int | Tensor, label: Tensor) -> Tensor:
        """The scenario's labels, int64 [n], of outputs [n] of one task's head or of each's own."""
        return self._named.to(label.device)[task, label]
