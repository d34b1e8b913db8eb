"""BatchNorm that each task has for itself."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import nn

MODES = (None, "shared", "independent")


def check_mode(owner: str, mode: str | None) -> None:
    """Raise ValueError unless it is one of the documented ways to use BatchNorm."""
    if mode not in MODES:
        wanted = "None, 'shared' or 'independent'"
        raise ValueError(f"{owner}: batch_normalization is {mode!r}, wanted {wanted}")


class NormsByTask(nn.ModuleDict):
    """Copies of a norm as it was at the end of each task, by the task's ID as a string.

    They are frozen and always in evaluation mode, so nothing can move them.

    Args:
        source: the norm in training, or a container of norms; it stays where it is.

    Attributes:
        start: state_dict that each task's begins with.
    """

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        # In a list, or it would be a part of this module.
        self._source = [source]
        self.start = deepcopy(source.state_dict())

    @property
    def source(self) -> nn.Module:
        """The norm in training."""
        return self._source[0]

    def keep(self, task_id: int) -> None:
        """Store a copy of the source as the task's."""
        self[str(task_id)] = deepcopy(self.source).eval().requires_grad_(False)

    def of(self, task_id: int) -> nn.Module:
        """The task's copy.

        Raises:
            ValueError: there is none.
        """
        if str(task_id) not in self:
            found = ", ".join(self) or "none"
            raise ValueError(f"task {task_id!r} has no BatchNorm, those that have: {found}")
        return self[str(task_id)]

    def begin_here(self) -> None:
        """Let each task begin with what the source is now."""
        self.start = deepcopy(self.source.state_dict())

    def reset_source(self) -> None:
        """Start the source afresh, as it was when this was made."""
        self.source.load_state_dict(self.start)

    def train(self, mode: bool = True) -> NormsByTask:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        for key in state_dict:
            task_id = key.removeprefix(prefix).split(".")[0]
            if key.startswith(prefix) and task_id.isdigit() and task_id not in self:
                self.keep(int(task_id))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
