"""What MAS and EWC have in common: a quadratic penalty for leaving what earlier tasks need."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from maskcl import backends, ops
from maskcl.grad_mode import untracked
from maskcl.methods.anchored_lists import AnchoredLists
from maskcl.methods.base import PlanWarning, TaskData, TaskState, measure_task, no_classes_reasons
from maskcl.methods.loss_scaling import ScalerWatch, factor
from maskcl.nn.tasks.kept_bits import check_ranks
from maskcl.optim import FusedStep, fuse
from maskcl.settings import Setting
from maskcl.shard_sums import total, totals
from maskcl.sharded_modules import class_name
from maskcl.shards import local

if TYPE_CHECKING:
    from maskcl.nn import ImportanceNetwork

_STRIDED = torch.strided
# Problems whose samples are rows of one graph.
_MIXED = ("node", "link")


class Quadratic:
    """Base of the methods that add strength * sum Omega (W - W*)^2 to the loss.

    The penalty's gradient is added to the parameters' gradients between backward and the
    optimizer's step, in one pass and with no graph: to an optimizer it is a part of the gradient
    like any other, to a clipping of gradients between the two as well.
    """

    later_tasks_defined: ClassVar[bool] = True

    strength: float
    reduction: str
    decay: float
    heads: bool

    def begin_task(self, net: ImportanceNetwork, task: int, *, seed: int = 0) -> QuadraticState:
        """Start ``task``: all that tasks share trains, its own head and norms too, nothing else.

        Build the optimizer after this, from ``parameter_groups(net, task)``.

        Raises:
            RuntimeError: the task is finished.
            TypeError: the network keeps no importances.
        """
        if not hasattr(net, "consolidate"):
            raise TypeError(
                f"{self._name}: net is a {class_name(net)}, wanted an ImportanceNetwork"
                " (maskcl.nn.to_importance makes one of an ordinary model)"
            )
        net.begin_task(task)
        anchored = bool(net.finished.any())
        nothing = torch.zeros((), device=net.finished.device), 0.0
        return QuadraticState(task, anchored, net.names(heads=self.heads), nothing, seed)

    def parameter_groups(self, net: ImportanceNetwork, task: int) -> list[dict[str, Any]]:
        """All that the task trains, in one group."""
        return [{"params": net.task_parameters(task)}]

    def check_plan(
        self, net: ImportanceNetwork, state: QuadraticState, optimizer: Optimizer, steps: int
    ) -> None:
        """Warn (`PlanWarning`) where SGD's steps along the penalty overshoot, and so diverge."""
        if state.anchored and (text := self._overshoots(net, optimizer)):
            warnings.warn(f"{self._name}: task {state.task}: {text}", PlanWarning, stacklevel=2)

    def explain_divergence(self, net: ImportanceNetwork, optimizer: Optimizer) -> str:
        """Whether the penalty may have made the loss infinite; "" where there is none."""
        if self.strength == 0 or not bool(net.finished.any()):
            return ""
        known = self._overshoots(net, optimizer)
        return f"; {known}" if known else f"; or a smaller strength than {self.strength:g}"

    def _overshoots(self, net: ImportanceNetwork, optimizer: Optimizer) -> str:
        """Why the steps of an SGD diverge on the penalty alone; "" where they need not.

        Along one weight the penalty is a parabola of curvature 2 strength Omega, on which a step of
        rate r shrinks the distance from its anchor only if r times that is below 2 (1 + momentum).
        """
        if not isinstance(optimizer, torch.optim.SGD) or self.strength == 0:
            return ""
        parameters, _, importances = net.anchored(net.names(heads=self.heads))
        if not parameters:
            return ""
        tops = [o.max() if o.numel() else o.new_zeros(()) for o in map(local, importances)]
        largest = dict(
            zip(map(id, parameters), totals(tops, importances, largest=True), strict=True)
        )
        for group in optimizer.param_groups:
            found = [largest[id(p)] for p in group["params"] if id(p) in largest]
            top = float(torch.stack(found).max()) if found else 0.0
            bound = 2 * (1 + group["momentum"])
            if group["lr"] * 2 * self.strength * top > bound:
                return (
                    f"the penalty makes SGD diverge: strength {self.strength:g} x the largest"
                    f" importance {top:.3g} x rate {group['lr']:g} is above"
                    f" {1 + group['momentum']:g}; wanted a strength below"
                    f" {bound / (2 * top * group['lr']):.3g} or a rate below"
                    f" {bound / (2 * self.strength * top):.3g}"
                )
        return ""

    def protect(
        self, optimizer: Optimizer, net: ImportanceNetwork, state: QuadraticState
    ) -> FusedStep | None:
        """Nothing is protected, as what earlier tasks need may move at a price; a faster step.

        ``torch.optim``'s SGD, Adam and AdamW step through one op until ``remove()`` of what is
        returned; None for others, which keep their step.
        """
        return fuse(optimizer)

    def before_step(self, net: ImportanceNetwork, state: QuadraticState, progress: float) -> None:
        """Have the shards of a sharded network in place."""
        net.take_shards()

    def loss_term(self, net: ImportanceNetwork, state: QuadraticState) -> float:
        """0.0: the penalty needs no graph; see ``after_backward``."""
        return 0.0

    def after_backward(
        self,
        net: ImportanceNetwork,
        state: QuadraticState,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Add the penalty's gradient to the gradients; its value is then in ``state.penalty``.

        A parameter that the backward did not reach has the penalty's gradient alone. Nothing
        happens in the first task, and with a strength of 0.

        Args:
            net: the network.
            state: of the task.
            scaler: that scaled the loss: the penalty's gradient is scaled likewise.

        Raises:
            RuntimeError: no scaler was given and one is in use.
        """
        if not state.anchored or self.strength == 0:
            return
        scale = factor(self, scaler, state.watch)
        if state.lists is None:
            state.lists = AnchoredLists(net, state.names)
        parameters: Any
        parameters, anchors, importances = state.lists.get()
        if not parameters:
            return
        grads: Any = []
        are_dense = True
        for parameter in parameters:  # a plain loop, in every step: maps take longer
            grad = parameter.grad
            if grad is None:
                grad = parameter.grad = torch.zeros_like(parameter)
            elif grad.layout is not _STRIDED:
                are_dense = False
            grads.append(grad)
        if state.lists.are_sharded:
            grads, parameters = [*map(local, grads)], [*map(local, parameters)]
        # Only where gradients are scaled does the host wait for the scale, as the scaler does.
        strength = self.strength * float(scale)
        if not are_dense:
            ops.mas_penalty_grads_(grads, parameters, anchors, importances, strength)  # says so
        # Not by the public op: its checks of lists that the network made cost more than the kernel.
        run = backends.select("mas_penalty_grads_", parameters[0])
        value = untracked(run, grads, parameters, anchors, importances, None, strength, True)
        state.charged = state.lists.sum_of(value), self.strength

    def after_step(self, net: ImportanceNetwork, state: QuadraticState) -> None:
        """Nothing."""

    def end_task(
        self, net: ImportanceNetwork, state: QuadraticState, data: TaskData | None = None
    ) -> None:
        """Measure what matters to the task, add it to the earlier ones', anchor all shared weights.

        Warns (`PlanWarning`) if nothing matters: the task will not be kept.

        Args:
            net: the network.
            state: of the task.
            data: the task's training samples, in evaluation as in training; where processes share
                the work, this one's.

        Raises:
            RuntimeError: there is no data, or processes hold different parameters.
        """
        if data is None:
            raise RuntimeError(
                f"{self._name}.end_task: data is None, wanted a TaskData: importances are measured"
                " on the task's training samples"
            )
        check_ranks(f"{self._name}.end_task", net)
        with net.task(state.task):
            found = self._estimate(net, state, data, [f"model.{name}" for name in state.names])
        measure_task(net, state.task, data)
        new = {name: found[f"model.{name}"] for name in state.names}
        net.consolidate(state.task, new, decay=self.decay, anchors=self._anchors)
        net.finish_task(state.task)
        held = list(new.values())
        if new and not bool(totals([local(t).any().long() for t in held], held).any()):
            warnings.warn(
                f"{self._name}: task {state.task}: all importances are 0, so the penalty does not"
                " hold what it has learned",
                PlanWarning,
                stacklevel=2,
            )

    def measure(self, net: ImportanceNetwork, task: int) -> dict[str, dict[str, float]]:
        """``importance``: by parameter, the mean over its elements of the sum over tasks.

        ``drift``: by parameter, the root mean square of its distance from its anchor when the task
        ended; empty for the first task, which has no anchors.
        """
        names = net.names(heads=self.heads)
        return {"importance": net.mean_importance(names), "drift": net.drift(task, names)}

    @torch.no_grad()
    def outlook(self, net: ImportanceNetwork, task: int) -> str:
        """The penalty that the parameters would be charged now."""
        net.take_shards()
        parameters, anchors, importances = net.anchored(net.names(heads=self.heads))
        if not parameters:
            return "penalty 0"
        lists = ([*map(local, kind)] for kind in (parameters, anchors, importances))
        value = self.strength * float(total(ops.mas_penalty(*lists), parameters))
        return f"penalty {value:.3g}"

    def free_capacity(self, net: ImportanceNetwork, task: int) -> None:
        """None: no weight is used up."""

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """Why importances cannot be measured on this problem; empty where they can.

        The penalty itself needs to know no task and no label at test.
        """
        reasons = no_classes_reasons(problem, setting)
        if self.reduction == "sample" and problem.name in _MIXED:
            reasons.append(
                f'{self._name}: reduction="sample" wants the gradient of each {problem.name} alone,'
                ' and messages mix all that a batch holds; reduction="batch" measures it'
            )
        return reasons

    @property
    def _name(self) -> str:
        return type(self).__name__

    @property
    def _anchors(self) -> str:
        """Where the penalty holds parameters; see ``ImportanceNetwork.consolidate``."""
        return "last"

    def _estimate(
        self, net: ImportanceNetwork, state: QuadraticState, data: TaskData, names: list[str]
    ) -> dict[str, Tensor]:
        """Importances of the parameters of these names to the active task."""
        raise NotImplementedError

    def _check(self, **choices: tuple[str, ...]) -> None:
        """Raise ValueError unless all hyper-parameters are in their ranges."""
        self._check_number("strength", math.inf)
        self._check_number("decay", 1.0)
        if not isinstance(self.heads, bool):
            raise ValueError(f"{self._name}: heads is {self.heads!r}, wanted True or False")
        for name, wanted in choices.items():
            found = getattr(self, name)
            if found not in wanted:
                raise ValueError(
                    f"{self._name}: {name} is {found!r}, wanted one of {', '.join(wanted)}"
                )

    def _check_number(self, name: str, high: float) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and 0 <= value <= high:
            return
        wanted = "a finite number of at least 0" if high == math.inf else "a number from 0 to 1"
        raise ValueError(f"{self._name}: {name} is {value!r}, wanted {wanted}")


@dataclass
class QuadraticState(TaskState):
    """What changes while one task is trained, apart from the network.

    Attributes:
        task: index of the task.
        anchored: whether there are earlier tasks that the penalty holds.
        names: of the parameters that it holds.
        watch: of scalers of the loss.
        lists: what the penalty takes of the network.
        charged: the last step's penalty, 0-d, before the strength, and the strength.
        seed: of the run.
        scale: None; nothing here is soft.
    """

    task: int
    anchored: bool
    names: list[str] = field(repr=False)
    charged: tuple[Tensor, float] = field(repr=False)
    seed: int = 0
    scale: None = None
    watch: ScalerWatch = field(default_factory=ScalerWatch, repr=False)
    lists: AnchoredLists | None = field(default=None, repr=False)

    @property
    def penalty(self) -> Tensor:
        """0-d, the last step's term of the loss; reading it waits for the device."""
        value, strength = self.charged
        return value * strength
