"""What a training loop asks of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.randomness import derive_seed
from maskcl.settings import Setting

__all__ = [
    "Method",
    "PlanWarning",
    "TaskData",
    "TaskState",
    "derive_seed",
    "hidden_task_reasons",
    "no_classes_reasons",
]


class PlanWarning(UserWarning):
    """What is about to be trained, or was, may not have learned what it should; with the reason."""


def _forward(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    *inputs, target = batch
    return net(*inputs), target


@dataclass(frozen=True)
class TaskData:
    """A task's training samples, for a method that looks at them once more when the task ends.

    Attributes:
        batches: each call goes through all samples of this process once, on the network's device.
        forward: (network, batch) -> outputs [N, ...] and their targets, [N] or [N, d], or None for
            targets; by default a batch is the network's arguments and the targets.
        segments: batch -> int64 [rows], the sample of each row of what goes into the network, where
            samples are groups of rows (the nodes of graphs); None where they are not.
        likelihood: of targets given outputs, for EWC; see `importance.estimate`.
    """

    batches: Callable[[], Iterable[Any]]
    forward: Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]] = _forward
    segments: Callable[[Any], Tensor] | None = None
    likelihood: str = "categorical"


class TaskState:
    """What the methods' states of a task in training have in common: how a checkpoint keeps them.

    Attributes:
        task: index of the task.
        SAVED: names of the numbers that a checkpoint needs besides the network.
    """

    SAVED: ClassVar[tuple[str, ...]] = ("task", "seed")

    task: int

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint inside the task needs; the rest follows from it and the network."""
        return {name: getattr(self, name) for name in self.SAVED}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over `state_dict`'s numbers.

        Raises:
            ValueError: they are of another task.
        """
        if state["task"] != self.task:
            raise ValueError(
                f"{type(self).__name__}: found task {state['task']}, wanted {self.task}"
            )
        for name in self.SAVED:
            setattr(self, name, state[name])


class Method(Protocol):
    """Frozen hyper-parameters and the hooks of one method; all that changes is in the state.

    The order in a step: ``before_step``, forward inside ``net.task(state.task, state.scale)``,
    loss plus ``loss_term`` (still inside), backward, ``after_backward``, ``optimizer.step()``,
    ``after_step``.

    Attributes:
        later_tasks_defined: whether a task that was not trained yet can be scored: it has a mask,
            or needs none.
    """

    later_tasks_defined: ClassVar[bool]

    def begin_task(self, net: Any, task: int, *, seed: int = 0) -> Any:
        """Make the network ready for a task; build the optimizer after it."""
        ...

    def parameter_groups(self, net: Any, task: int) -> list[dict[str, Any]]:
        """What a task trains, as groups for its optimizer; what decides about masks never decays.

        Their number and settings are the same before ``begin_task``; their parameters may not be.
        """
        ...

    def check_plan(self, net: Any, state: Any, optimizer: Optimizer, steps: int) -> None:
        """Before a task's ``steps`` steps: warn if they cannot train what they should."""
        ...

    def protect(self, optimizer: Optimizer, net: Any, state: Any) -> Any:
        """Keep the optimizer off what earlier tasks need; a handle with ``remove()`` or None."""
        ...

    def before_step(self, net: Any, state: Any, progress: float) -> None:
        """Before the forward; progress in [0, 1] of the epoch."""
        ...

    def loss_term(self, net: Any, state: Any) -> Tensor | float:
        """What the method adds to the loss, 0-d; the number 0.0 where that is nothing."""
        ...

    def after_backward(
        self, net: Any, state: Any, *, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Between backward and the optimizer's step; ``scaler`` is what scaled the loss, if any."""
        ...

    def after_step(self, net: Any, state: Any) -> None:
        """After the optimizer's step."""
        ...

    def end_task(self, net: Any, state: Any, data: TaskData | None = None) -> None:
        """After the last step of a task; ``data`` for methods that measure on it."""
        ...

    def measure(self, net: Any, task: int) -> dict[str, dict[str, float]]:
        """After ``end_task``: numbers by name and part of the network."""
        ...

    def explain_divergence(self, net: Any, optimizer: Optimizer) -> str:
        """What of the method may have made the loss infinite, as the end of a sentence, or ""."""
        ...

    def outlook(self, net: Any, task: int) -> str:
        """A few words about the task in training, for a line of progress."""
        ...

    def free_capacity(self, net: Any, task: int) -> float | None:
        """The share of capacity that the task in training would leave free; None for no such."""
        ...

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """Why this combination cannot be; empty where it can."""
        ...


def check_measurable(caller: str, net: Any, data: TaskData | None) -> None:
    """Raise RuntimeError where ``net.inference`` wants a task's samples and there are none."""
    if getattr(net, "inference", None) is not None and data is None:
        raise RuntimeError(
            f"{caller}: data is None, wanted a TaskData: net.inference is measured on the task's"
            " training samples"
        )


def measure_task(net: Any, task: int, data: TaskData | None) -> None:
    """Let ``net.inference``, where there is one, gather a task's statistics."""
    if getattr(net, "inference", None) is not None:
        net.measure_task(task, data)


def hidden_task_reasons(name: str, setting: Setting) -> list[str]:
    """Why a method that needs the task of every test sample cannot run; empty where it can."""
    if setting.task_id_at_test:
        return []
    return [
        f"{name} chooses the mask by the task that a sample belongs to,"
        f" which the {setting.name} setting does not tell at test: maskcl.TaskInference infers it"
    ]


def no_classes_reasons(problem: Any, setting: Setting) -> list[str]:
    """Why link prediction cannot run where tasks differ in their classes; empty where it can."""
    if not getattr(problem, "prediction", False) or setting.split_by != "class":
        return []
    return [
        "link prediction asks whether a pair is a link and has no classes,"
        f" by which the {setting.name} setting divides tasks"
    ]
