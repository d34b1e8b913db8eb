"""The output head of the domain-incremental setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.spelling import spellings

__all__ = ["HeadDIL"]


class HeadDIL(nn.Module):
    """One linear head for all tasks.

    Args:
        input_dim: the backbone's output_dim.

    Attributes:
        head: the head; None before ``setup_task``.
    """

    head: nn.Linear | None

    def __init__(self, input_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.head = None

    def if_head_setup(self) -> bool:
        """Whether there is a head."""
        return self.head is not None

    @spellings(num_classes_t="num_classes")
    def setup_task(self, num_classes: int) -> None:
        """Make the head, of so many outputs."""
        self.head = nn.Linear(self.input_dim, num_classes)

    def get_head(self, task_id: int | None = None) -> nn.Linear:
        """The head, whatever the task.

        Raises:
            RuntimeError: there is none.
        """
        if self.head is None:
            raise RuntimeError("HeadDIL: no head, call setup_task(num_classes) first")
        return self.head

    def forward(self, feature: Tensor, task_id: int | None = None) -> Tensor:
        """[N, input_dim] -> logits, [N, classes].

        Raises:
            RuntimeError: there is no head.
        """
        return self.get_head()(feature)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        weight = state_dict.get(f"{prefix}head.weight")
        if self.head is None and isinstance(weight, Tensor):
            self.setup_task(len(weight))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
