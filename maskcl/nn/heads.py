"""Output layers, one a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from maskcl.nn.state import TaskAware


class TaskHeads(TaskAware):
    """An ordinary ``nn.Linear`` a task; the active task's is applied, and none is ever masked.

    Args:
        in_features: of all heads.
        classes: outputs of each task's head.
        bias, device, dtype: as for ``nn.Linear``.

    Shape: [.., in_features] -> [.., classes[task]].

    Raises:
        ValueError: no classes, or a task with none.
        RuntimeError: (forward) it belongs to no network, or no task is active.
    """

    def __init__(
        self,
        in_features: int,
        classes: Sequence[int],
        bias: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not classes or any(number < 1 for number in classes):
            raise ValueError(
                f"TaskHeads: classes is {list(classes)}, wanted one number above 0 a task"
            )
        self.in_features = in_features
        self.heads = nn.ModuleList(
            nn.Linear(in_features, number, bias, device=device, dtype=dtype) for number in classes
        )

    @property
    def num_tasks(self) -> int:
        """How many heads there are."""
        return len(self.heads)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of the active task."""
        _, task = self._active()
        return self.heads[task](input)
