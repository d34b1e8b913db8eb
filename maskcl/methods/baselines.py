"""What methods are compared with: plain training on one task after the other, together, alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn
from torch.optim import Optimizer

from maskcl.methods.base import (
    TaskData,
    TaskState,
    check_measurable,
    measure_task,
    no_classes_reasons,
)
from maskcl.optim import FusedStep, fuse
from maskcl.settings import Setting
from maskcl.sharded_modules import class_name

if TYPE_CHECKING:
    import torch

    from maskcl.nn import ImportanceNetwork


@dataclass(frozen=True)
class Finetune:
    """All tasks train one network, and nothing holds what earlier ones need: they are forgotten.

    The lower bound of the field's tables. Heads and norms are as MAS has them: finished tasks' own
    do not move, all that tasks share does.
    """

    later_tasks_defined: ClassVar[bool] = True

    def begin_task(self, net: ImportanceNetwork, task: int, *, seed: int = 0) -> FinetuneState:
        """Start ``task``: all that tasks share trains, its own head and norms too, nothing else.

        Raises:
            RuntimeError: the task is finished.
            TypeError: the network is not of ``to_importance``.
        """
        if not hasattr(net, "consolidate"):
            raise TypeError(
                f"{type(self).__name__}: net is a {class_name(net)}, wanted an ImportanceNetwork"
                " (maskcl.nn.to_importance makes one of an ordinary model)"
            )
        net.begin_task(task)
        return FinetuneState(task, seed)

    def parameter_groups(self, net: ImportanceNetwork, task: int) -> list[dict[str, Any]]:
        """All that the task trains, in one group."""
        return [{"params": net.task_parameters(task)}]

    def check_plan(
        self, net: ImportanceNetwork, state: FinetuneState, optimizer: Optimizer, steps: int
    ) -> None:
        """Nothing."""

    def protect(
        self, optimizer: Optimizer, net: ImportanceNetwork, state: FinetuneState
    ) -> FusedStep | None:
        """Nothing is protected; a faster step, see ``MAS.protect``."""
        return fuse(optimizer)

    def before_step(self, net: ImportanceNetwork, state: FinetuneState, progress: float) -> None:
        """Have the shards of a sharded network in place."""
        net.take_shards()

    def loss_term(self, net: ImportanceNetwork, state: FinetuneState) -> float:
        """0.0."""
        return 0.0

    def after_backward(
        self,
        net: ImportanceNetwork,
        state: FinetuneState,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Nothing."""

    def after_step(self, net: ImportanceNetwork, state: FinetuneState) -> None:
        """Nothing."""

    def end_task(
        self, net: ImportanceNetwork, state: FinetuneState, data: TaskData | None = None
    ) -> None:
        """Finish the task; ``data`` is wanted where ``net.inference`` measures it."""
        check_measurable(type(self).__name__, net, data)
        measure_task(net, state.task, data)
        net.finish_task(state.task)

    def measure(self, net: ImportanceNetwork, task: int) -> dict[str, dict[str, float]]:
        """Nothing."""
        return {}

    def explain_divergence(self, net: ImportanceNetwork, optimizer: Optimizer) -> str:
        """Nothing of the method can be at fault."""
        return ""

    def outlook(self, net: ImportanceNetwork, task: int) -> str:
        """Nothing."""
        return ""

    def free_capacity(self, net: ImportanceNetwork, task: int) -> None:
        """None: nothing is taken."""

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """Why this combination cannot be; empty where it can."""
        return no_classes_reasons(problem, setting)


@dataclass(frozen=True)
class Joint(Finetune):
    """A network for each task, trained on all tasks so far together: the field's upper bound.

    With the problem and scenario of `maskcl.training.baselines.together`, and its trainer.
    """

    def begin_task(self, net: ImportanceNetwork, task: int, *, seed: int = 0) -> FinetuneState:
        """Start the task, whose network trains the heads and norms of earlier ones too."""
        state = super().begin_task(net, task, seed=seed)
        for parameter in self._all(net, task):
            parameter.requires_grad_(True)
        return state

    def parameter_groups(self, net: ImportanceNetwork, task: int) -> list[dict[str, Any]]:
        """All that the tasks so far train, in one group."""
        return [{"params": self._all(net, task)}]

    def end_task(
        self, net: ImportanceNetwork, state: FinetuneState, data: TaskData | None = None
    ) -> None:
        """Finish all tasks so far."""
        for task in range(state.task + 1):
            net.finish_task(task)

    def _all(self, net: ImportanceNetwork, task: int) -> list[nn.Parameter]:
        return list({id(p): p for k in range(task + 1) for p in net.task_parameters(k)}.values())


@dataclass(frozen=True)
class Independent(Finetune):
    """A network for each task, trained on it alone; which to ask is told by the task at test."""

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """Why this combination cannot be: the task of a sample is hidden at test."""
        reasons = super().not_supported_reasons(problem, setting)
        if not setting.task_id_at_test:
            reasons.append(
                "Independent has a network for each task, and the"
                f" {setting.name} setting does not tell the task at test"
            )
        return reasons


@dataclass
class FinetuneState(TaskState):
    """What changes while one task is trained, apart from the network.

    Attributes:
        task: index of the task.
        seed: of the run.
        scale: None; nothing here is soft.
    """

    task: int
    seed: int = 0
    scale: None = None
