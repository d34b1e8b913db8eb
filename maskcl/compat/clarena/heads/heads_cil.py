"""Output heads of the class-incremental setting."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.clarena.spelling import spellings

__all__ = ["HeadsCIL"]


class HeadsCIL(nn.Module):
    """One linear head a task, whose logits stand side by side.

    For a `CLAlgorithm` of your own: HAT and AdaHAT need to know the task, and refuse them.

    Args:
        input_dim: the backbone's output_dim.

    Attributes:
        heads: task ID as a string -> head.
        task_id: of the current task; None before the first.
        processed_task_ids: all so far, in the order of their logits.
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.heads = nn.ModuleDict()
        self.task_id: int | None = None
        self.processed_task_ids: list[int] = []

    @property
    def seen_task_ids(self) -> list[int]:
        """``processed_task_ids``, as versions before 1.1 called it."""
        return self.processed_task_ids

    @spellings(num_classes="num_classes_t")
    def setup_task_id(self, task_id: int, num_classes_t: int) -> None:
        """Go to a task, whose head is made unless it is there.

        Args:
            task_id: of the task.
            num_classes_t: classes that it adds.
        """
        if str(task_id) not in self.heads:
            self.heads[str(task_id)] = nn.Linear(self.input_dim, num_classes_t)
            self.processed_task_ids.append(task_id)
        self.task_id = task_id

    def forward(self, feature: Tensor, task_id: int | None = None) -> Tensor:
        """[N, input_dim] -> logits of all tasks so far, [N, classes], whatever the task.

        Raises:
            RuntimeError: there is no head.
        """
        if not self.processed_task_ids:
            raise RuntimeError("HeadsCIL: no head, call setup_task_id(task_id, num_classes) first")
        logits: list[Any] = [self.heads[str(task)](feature) for task in self.processed_task_ids]
        return torch.cat(logits, -1)
