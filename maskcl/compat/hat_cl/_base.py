"""Bases of every task dependent thing, a parameter or a module, and of what takes payloads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl.types_ import ForgetResult


class TaskDependentMixin(ABC):
    """Base of parameters and modules that differ from task to task.

    Attributes:
        base_class: the ordinary class that it stands for, such as ``nn.Linear`` for ``HATLinear``.
    """

    base_class: Any

    @property
    @abstractmethod
    def num_tasks(self) -> int:
        """How many tasks it holds."""


class HATPayloadCarrierMixin(nn.Module, ABC):
    """A module whose ``forward`` takes and returns a `HATPayload`, outside of compiled code."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = eager(cls.forward)  # type: ignore[method-assign]

    # Payloads ask whether a module is one of these, so they are above, and unknown here.
    @abstractmethod
    def forward(self, pld: Any) -> Any:
        """The payload behind the module."""


class TaskDependentModuleABC(TaskDependentMixin, HATPayloadCarrierMixin, ABC):
    """Base of the modules that differ from task to task."""

    @abstractmethod
    def forget(
        self,
        task_id: int,
        dry_run: bool = False,
        module_name: str | None = None,
        locked_task_ids: list[int] | None = None,
    ) -> ForgetResult:
        """Reset what belongs to the task alone.

        Args:
            task_id: which task.
            dry_run: say what would be reset, and write nothing.
            module_name: in the result's names; None: the class's.
            locked_task_ids: tasks that must not change; None: all trained ones but ``task_id``.
        """

    @abstractmethod
    def to_base_module(self, **kwargs: Any) -> nn.Module:
        """An ordinary module, tensors in, tensors out, that computes the same for one task."""

    @classmethod
    @abstractmethod
    def from_base_module(cls, base_module: Any, **kwargs: Any) -> TaskDependentModuleABC:
        """The task dependent counterpart with the same parameters."""

    @abstractmethod
    def load_from_base_module(self, base_module: Any) -> None:
        """Copy an ordinary module's parameters."""


class HATModuleABC(TaskDependentModuleABC, ABC):
    """Base of the modules with masks."""
