"""A model in training: the one that is asked for, or one to compare it with."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.nn.tasks.network import TaskNetwork


@dataclass
class Run:
    """One of BeGin's three models.

    Attributes:
        name: "exp", the method's; "base", trained on each task alone; "accum", on all tasks so far.
        model: the whole; ``net`` is the part that the method's hooks take.
        method: of ``maskcl.methods``, or fine-tuning.
        states: as the event functions get them.
        optimizer, guard, state, loaders, data: of the task in training.
        stopped: whether the task's training has ended early.
        ended: whether the method has its record of the task.
    """

    name: str
    model: Any
    method: Any
    states: dict[str, Any] = field(default_factory=dict)
    optimizer: Optimizer | None = None
    guard: Any = None
    state: Any = None
    loaders: dict[str, Any] = field(default_factory=dict)
    data: Any = None
    stopped: bool = False
    ended: bool = False

    @property
    def net(self) -> nn.Module:
        """What the method's hooks take."""
        core = getattr(self.model, "core", None)
        return core if isinstance(core, TaskNetwork) else self.model


def active(model: Any, task: int, scale: Tensor | None = None) -> AbstractContextManager[Any]:
    """``model.task(task, scale)``; nothing for a model without tasks."""
    return model.task(task, scale) if hasattr(model, "task") else nullcontext()
