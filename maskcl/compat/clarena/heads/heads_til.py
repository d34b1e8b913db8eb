"""Output heads of the task-incremental setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.heads.kinds import check_classes, freeze_others
from maskcl.compat.clarena.spelling import spellings

__all__ = ["HeadsTIL"]


class HeadsTIL(nn.Module):
    """One linear head a task.

    Args:
        input_dim: the backbone's output_dim.

    Attributes:
        heads: task ID as a string -> head.
        head_t: the current task's.
        task_id: of the current task; None before the first.
    """

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.heads = nn.ModuleDict()
        self.task_id: int | None = None

    @property
    def head_t(self) -> nn.Module | None:
        """The current task's head; None before the first task."""
        return None if self.task_id is None else self.get_head(self.task_id)

    @spellings(num_classes="num_classes_t")
    def setup_task_id(self, task_id: int, num_classes_t: int) -> None:
        """Go to a task, whose head is made unless it is there; the others are frozen.

        Args:
            task_id: of the task.
            num_classes_t: outputs of its head.

        Raises:
            ValueError: its head is there, with another number of classes.
        """
        if str(task_id) not in self.heads:
            self._make(str(task_id), num_classes_t)
        check_classes(self, task_id, num_classes_t)
        self.task_id = task_id
        freeze_others(self, task_id)

    def get_head(self, task_id: int | None) -> Any:
        """A task's head.

        Raises:
            ValueError: it has none.
        """
        if str(task_id) not in self.heads:
            found = ", ".join(self.heads) or "none"
            raise ValueError(f"task {task_id!r} has no head, those that have one: {found}")
        return self.heads[str(task_id)]

    def forward(self, feature: Tensor, task_id: int | None = None) -> Tensor:
        """[N, input_dim] -> logits of a task, [N, classes].

        Raises:
            ValueError: the task has no head.
        """
        return self.get_head(task_id)(feature)

    def _make(self, key: str, classes: int) -> None:
        like = next(self.parameters(), None)
        options: dict[str, Any] = (
            {} if like is None else {"device": like.device, "dtype": like.dtype}
        )
        self.heads[key] = nn.Linear(self.input_dim, classes, **options)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        for key, value in state_dict.items():
            parts = key.removeprefix(prefix).split(".")
            is_bias = len(parts) == 3 and parts[0] == "heads" and parts[2] == "bias"
            if key.startswith(prefix) and is_bias and parts[1] not in self.heads:
                self._make(parts[1], len(value))
                self.heads[parts[1]].requires_grad_(parts[1] == str(self.task_id))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
