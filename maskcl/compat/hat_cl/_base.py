"""What every task dependent thing, a parameter or a module, can be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


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
