"""The methods behind the trainers: their keywords, and how a model becomes their network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.nn import to_hat, to_importance, to_piggyback
from maskcl.nn.tasks.network import TaskNetwork


@dataclass(frozen=True)
class Plan:
    """What a method has to know of a run.

    Attributes:
        problem: "node", "link" or "graph".
        setting: "task", "class", "domain" or "time".
        tasks, classes: T and C.
        example: arguments of the model's core, of a few samples.
    """

    problem: str
    setting: str
    tasks: int
    classes: int
    example: tuple[Any, ...]

    @property
    def heads(self) -> list[int] | None:
        """In the task setting each task has its own head for all classes, of which masks choose."""
        return [self.classes] * self.tasks if self.setting == "task" else None


@dataclass(frozen=True)
class Unit:
    """A method as a trainer takes it.

    Attributes:
        name: as in the trainers' names; "Bare" for fine-tuning.
        keywords: name -> default of what its trainers accept besides what all do.
        method: the keywords' values, plan -> a method of ``maskcl.methods``.
        convert: core, plan -> its network; None: the model is trained as it is.
    """

    name: str
    keywords: Mapping[str, Any]
    method: Callable[[Mapping[str, Any], Plan], Any]
    convert: Callable[[nn.Module, Plan], TaskNetwork] | None = None


@dataclass
class _PlainState:
    task: int
    scale: None = None


@dataclass(frozen=True)
class FineTuning:
    """The hooks of no method: BeGin's bare model, and what its joint one is trained with."""

    later_tasks_defined: ClassVar[bool] = True
    _nothing: None = field(default=None, repr=False)

    def begin_task(self, net: nn.Module, task: int, *, seed: int = 0) -> _PlainState:
        """Nothing but a state."""
        return _PlainState(task)

    def parameter_groups(self, net: nn.Module, task: int) -> list[dict[str, Any]]:
        """All parameters."""
        return [{"params": list(net.parameters())}]

    def check_plan(self, net: nn.Module, state: Any, optimizer: Optimizer, steps: int) -> None:
        """Nothing."""

    def protect(self, optimizer: Optimizer, net: nn.Module, state: Any) -> None:
        """Nothing."""

    def before_step(self, net: nn.Module, state: Any, progress: float) -> None:
        """Nothing."""

    def loss_term(self, net: nn.Module, state: Any) -> float:
        """0.0."""
        return 0.0

    def after_backward(
        self, net: nn.Module, state: Any, *, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Nothing."""

    def after_step(self, net: nn.Module, state: Any) -> None:
        """Nothing."""

    def end_task(self, net: nn.Module, state: Any, data: Any = None) -> None:
        """Nothing."""


def _hat(options: Mapping[str, Any], plan: Plan) -> HAT:
    return HAT(
        s_max=options["smax"],
        sparsity=options["lamb"],
        clip=options["clipgrad"],
        cosh_clamp=options["thres_cosh"],
        embedding_clamp=options["thres_emb"],
    )


def _piggyback(options: Mapping[str, Any], plan: Plan) -> Piggyback:
    threshold = options["threshold"]
    return Piggyback(threshold=threshold, init=2 * threshold, inclusive=True)


def _mas(options: Mapping[str, Any], plan: Plan) -> MAS:
    # Messages mix nodes and links of a batch, but not graphs: there the exact mean of |gradients|.
    reduction = "sample" if plan.problem == "graph" else "batch"
    return MAS(strength=options["lamb"], reduction=reduction, heads=plan.setting != "task")


def _ewc(options: Mapping[str, Any], plan: Plan) -> EWC:
    reduction = "sample" if plan.problem == "graph" else "batch"
    return EWC(strength=options["lamb"], reduction=reduction, heads=plan.setting != "task")


def _to_hat(core: nn.Module, plan: Plan) -> TaskNetwork:
    return to_hat(core, plan.tasks, plan.example, classes=plan.heads)


def _to_piggyback(core: nn.Module, plan: Plan) -> TaskNetwork:
    head = None if plan.heads is None else "head"
    return to_piggyback(core, plan.tasks, classes=plan.heads, head=head, norms="task")


def _to_importance(core: nn.Module, plan: Plan) -> TaskNetwork:
    return to_importance(core, plan.tasks, classes=plan.heads, head="head")


BARE = Unit("Bare", {}, lambda options, plan: FineTuning())
HAT_UNIT = Unit(
    "HAT",
    {"smax": 400.0, "lamb": 0.75, "clipgrad": 10000.0, "thres_cosh": 50.0, "thres_emb": 6.0},
    _hat,
    _to_hat,
)
PIGGYBACK_UNIT = Unit("Piggyback", {"threshold": 5e-3}, _piggyback, _to_piggyback)
MAS_UNIT = Unit("MAS", {"lamb": 1.0}, _mas, _to_importance)
EWC_UNIT = Unit("EWC", {"lamb": 10_000.0}, _ewc, _to_importance)
EWC_OF_PAIRS = Unit("EWC", {"lamb": 1.0}, _ewc, _to_importance)
