"""HAT, hard attention to the task (Serra et al. 2018, arXiv 1801.01423), as hooks of any loop."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from maskcl.methods.base import (
    PlanWarning,
    TaskData,
    check_measurable,
    hidden_task_reasons,
    measure_task,
    no_classes_reasons,
)
from maskcl.methods.hat_state import HATState
from maskcl.methods.loss_scaling import clip_norm, factor
from maskcl.nn.tasks.kept_bits import FinishedTasks, check_ranks, share_statistics
from maskcl.nn.tasks.network import way_on
from maskcl.ops import hat_scale
from maskcl.ops.gate import scale_at
from maskcl.optim import FusedStep, Guard, guard, protect
from maskcl.optim.fusable import not_fused_reasons
from maskcl.optim.protected_elements import ProtectedElements
from maskcl.randomness import derive_seed
from maskcl.settings import Setting
from maskcl.sharded_modules import class_name

if TYPE_CHECKING:
    from maskcl.nn import HATNetwork

_CHOICES = {
    "schedule": ("linear", "cosine", "exponential", "constant"),
    "init": ("normal", "uniform", "dense"),
    "protection": ("exact", "min"),
    "rule": ("hat", "const", "adahat", "random"),
    "compensation": ("exact", "recipe", "none"),
}
_LEAST_FREE = 0.02
_RULES_WITH_VALUE = ("const", "adahat")


@dataclass(frozen=True)
class HAT:
    """Hyper-parameters of HAT and the hooks that apply them.

    Args:
        s_max: largest scale of the gates; each epoch goes from 1 / s_max to s_max (eq. 3), or the
            task does, where its epochs have fewer than four steps (``ops.task_progress``).
        sparsity: c, the weight of the sparsity term (eq. 5).
        schedule: how the scale rises in an epoch: ``linear`` (the paper's), ``cosine``,
            ``exponential`` or ``constant``.
        init: how a task's embedding starts: ``normal``, ``uniform`` or ``dense``.
        protection: ``exact`` protects a weight if some one earlier task uses both its ends;
            ``min`` (the paper's) if any earlier task uses the one and any uses the other.
        rule: what happens to the gradient of a protected weight: ``hat`` makes it 0, ``const``
            multiplies by ``rule_value``, ``adahat`` by r / (n + r) with r = ``rule_value`` and n
            the number of tasks that use the weight, ``random`` by a uniform number. Only ``hat``
            keeps earlier tasks' outputs.
        rule_value: the factor of ``const`` in [0, 1], or r > 0 of ``adahat``; None for the others.
        compensation: of the embeddings' gradient (section 2.5): ``exact``, the paper's equation;
            ``recipe``, with the rounding of the original's arithmetic; ``none``.
        embedding_clamp: embeddings stay within +- this after each step (section 2.5).
        cosh_clamp: bound on |s e| in the compensation.
        clip: largest norm of the gradient of all that the task trains, or None.

    Raises:
        ValueError: a value is outside its range; the message names it.
    """

    later_tasks_defined: ClassVar[bool] = True

    s_max: float = 400.0
    sparsity: float = 0.75
    schedule: str = "linear"
    init: str = "normal"
    protection: str = "exact"
    rule: str = "hat"
    rule_value: float | None = None
    compensation: str = "exact"
    embedding_clamp: float = 6.0
    cosh_clamp: float = 50.0
    clip: float | None = None

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                found = getattr(self, name)
                raise ValueError(f"HAT: {name} is {found!r}, wanted one of {', '.join(choices)}")
        self._check_number("s_max", 1, inclusive=True)
        self._check_number("sparsity", 0, inclusive=True)
        self._check_number("embedding_clamp", 0)
        self._check_number("cosh_clamp", 0)
        if self.clip is not None:
            self._check_number("clip", 0)
        self._check_rule_value()

    def _check_number(self, name: str, low: float, *, inclusive: bool = False) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and (value > low or (inclusive and value == low)):
            return
        wanted = f"at least {low}" if inclusive else f"above {low}"
        raise ValueError(f"HAT: {name} is {value!r}, wanted a finite number {wanted}")

    def _check_rule_value(self) -> None:
        if self.rule not in _RULES_WITH_VALUE:
            if self.rule_value is not None:
                raise ValueError(
                    f"HAT: rule_value is {self.rule_value!r}, wanted None for rule {self.rule!r}"
                )
            return
        self._check_number("rule_value", 0, inclusive=self.rule == "const")
        if self.rule == "const" and self.rule_value > 1:  # type: ignore[operator]
            raise ValueError(f"HAT: rule_value is {self.rule_value}, wanted at most 1 for 'const'")

    def begin_task(self, net: HATNetwork, task: int, *, seed: int = 0) -> HATState:
        """Start ``task``: its embedding afresh from (seed, task), and only what it trains learns.

        Build the optimizer after this, from ``parameter_groups(net, task)``: an optimizer of the
        task before carries moments that would move protected weights.

        Warns (`PlanWarning`) where less than 2 % of the units are free.

        Raises:
            RuntimeError: the task is finished.
            TypeError: the network has no gates.
        """
        if not hasattr(net, "reset_embedding"):
            raise TypeError(
                f"HAT: net is a {class_name(net)}, wanted a HATNetwork (maskcl.nn.to_hat makes"
                " one of an ordinary model)"
            )
        if bool(net.finished[task]):
            raise RuntimeError(f"HAT: task {task} is finished; {way_on(net.finished.tolist())}")
        generator = torch.Generator().manual_seed(derive_seed("embedding", seed, task))
        net.reset_embedding(task, self.init, generator=generator)
        max_scale = None if self.compensation == "none" else self.s_max
        net.configure_gate(
            max_scale=max_scale,
            cosh_clamp=self.cosh_clamp,
            compensation="recipe" if self.compensation == "recipe" else "exact",
            sparsity=self.sparsity,
        )
        net.begin_task(task, check=self.rule == "hat")
        embedding = net.embeddings[task]
        dtype = torch.float64 if embedding.dtype == torch.float64 else torch.float32
        # A tensor filled in place: no step waits for the device or is compiled anew.
        scale = torch.full((), self.s_max, dtype=dtype, device=embedding.device)
        trained = net.task_parameters(task)
        begun = FinishedTasks(net, task)
        self._warn_if_full(net, task)
        return HATState(task, scale, net.protection(), trained, begun, self, seed=seed)

    def _warn_if_full(self, net: HATNetwork, task: int) -> None:
        used = net.used()
        free = used.numel() - int(used.sum())
        if used.numel() and free < _LEAST_FREE * used.numel():
            warnings.warn(
                f"HAT: task {task} begins with {free:,} of {used.numel():,} units free: it has to"
                " make do with what earlier tasks learned. net.grow(units) adds some,"
                " net.forget_task(k, reset=True) gives a task's back, and a larger sparsity leaves"
                " more to later tasks",
                PlanWarning,
                stacklevel=3,
            )

    @property
    def _exact(self) -> bool:
        return self.protection == "exact"

    def parameter_groups(self, net: HATNetwork, task: int) -> list[dict[str, Any]]:
        """Weights, norms and head as the optimizer likes; the task's embedding without decay.

        Decay would pull an embedding to 0, where chance decides about its unit.
        """
        embedding = net.embeddings[task]
        others = [p for p in net.task_parameters(task) if p is not embedding]
        return [{"params": others}, {"params": [embedding], "weight_decay": 0.0}]

    def check_plan(
        self, net: HATNetwork, state: HATState, optimizer: Optimizer, steps: int
    ) -> None:
        """Warn (`PlanWarning`) where the optimizer's weight decay is on the task's embedding."""
        embedding = net.embeddings[state.task]
        for group in optimizer.param_groups:
            if group.get("weight_decay", 0) and any(p is embedding for p in group["params"]):
                warnings.warn(
                    f"HAT: task {state.task}: weight decay on the task's embedding pulls it to 0,"
                    " where chance decides about its units; parameter_groups(net, task) has it"
                    " without",
                    PlanWarning,
                    stacklevel=2,
                )

    def protect(
        self, optimizer: Optimizer, net: HATNetwork, state: HATState
    ) -> FusedStep | Guard | None:
        """Keep momentum, moments and weight decay of ``optimizer`` off protected weights.

        ``torch.optim``'s SGD, Adam and AdamW step as `maskcl.optim.protect` says, with ``clip`` and
        ``embedding_clamp`` in the same pass, so that ``after_backward`` leaves the gradients as
        they are. None under the rules that let protected weights move. ``remove()`` what is
        returned at the end. A network that ``fully_shard`` was called for after ``begin_task`` is
        protected as it is now; build the optimizer after that.
        """
        state.follow_shards(net)
        if self.rule != "hat":
            return None
        trained = {id(p) for p in state.trained}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        is_fused = not not_fused_reasons(optimizer)
        if not is_fused or not trained <= held:
            # Of several optimizers none knows the norm of all gradients: they are clamped and
            # clipped before the steps.
            state.step = None
            if is_fused:
                return protect(optimizer, state.protection, protection=self.protection)
            exact = self.protection == "exact"
            return guard(optimizer, state.protection, exact)
        bounds = {net.embeddings[state.task]: self.embedding_clamp}
        elements = ProtectedElements("protect", state.protection, self.protection, bounds)
        state.step = FusedStep(optimizer, elements, self.clip)
        return state.step

    def before_step(self, net: HATNetwork, state: HATState, progress: float) -> None:
        """Set the scale for progress in [0, 1] of the epoch (``ops.epoch_progress``)."""
        net.take_shards()
        if type(progress) is float and 0.0 <= progress <= 1.0:
            scale = scale_at(progress, self.s_max, self.schedule)
        else:  # says what is wrong with it, or takes another kind of number
            scale = hat_scale(progress, self.s_max, self.schedule)
        state.scale.fill_(scale)

    def loss_term(self, net: HATNetwork, state: HATState) -> Tensor:
        """Times c: the share of free units that the last forward's mask takes (eq. 5).

        Call it inside ``net.task(...)``, after the forward.
        """
        return net.sparsity(self.sparsity)

    def after_backward(
        self, net: HATNetwork, state: HATState, *, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        """Clamp protected weights' gradients, then clip, in the original's order.

        The compensation of the embeddings' gradient has already happened, in the gate's backward.

        Args:
            net: the network.
            state: of the task.
            scaler: that scaled the loss; ``clip`` has to know.

        Raises:
            RuntimeError: a parameter was replaced since the task began, or ``clip`` is set, no
                scaler was given and one is in use.
        """
        state.begun.check("HAT.after_backward", net)
        net.take_shards()
        state.protection.check_parameters("HAT.after_backward")
        state.steps += 1
        if state.is_fused:
            return  # the step itself leaves out what is protected, and clips
        seed = 0
        if self.rule == "random":
            seed = derive_seed("rule", state.seed, state.task, state.steps - 1)
        state.protection.clamp_(
            rule=self.rule, exact=self._exact, values=self.rule_value, seed=seed
        )
        if self.clip is not None:
            scale = factor(self, scaler, state.watch)
            clip_norm(state.trained, self.clip, scale)

    def after_step(self, net: HATNetwork, state: HATState) -> None:
        """Bound the task's embedding, so that every gate can still be reached by the gradient."""
        if not state.is_fused:
            with torch.no_grad():
                net.embeddings[state.task].clamp_(-self.embedding_clamp, self.embedding_clamp)

    def end_task(self, net: HATNetwork, state: HATState, data: TaskData | None = None) -> None:
        """Record which units the task uses; from here on they are protected.

        Raises:
            RuntimeError: earlier tasks are no longer what they were (rule "hat"), others were
                finished meanwhile, the task began under another rule, or processes hold different
                parameters; nothing is recorded then.
        """
        net._check_open("finish_task", state.task)
        check_measurable("HAT.end_task", net, data)
        state.begun.check("HAT.end_task", net)
        for name in ("rule", "protection"):
            was, now = getattr(state.method, name), getattr(self, name)
            if was != now:
                raise RuntimeError(
                    f"HAT.end_task: the task began with {name} {was!r} and ends with {now!r}:"
                    " end it with the method that began it"
                )
        # Other rules let protected weights move, so they promise no bits.
        is_kept = self.rule == "hat"
        problem = net._changed_since("HAT.end_task") if is_kept else None
        check_ranks("HAT.end_task", net, problem)
        share_statistics(module for _, module in net._own_modules(state.task))
        measure_task(net, state.task, data)
        net.finish_task(state.task, check=False)

    def measure(self, net: HATNetwork, task: int) -> dict[str, dict[str, float]]:
        """``capacity``: by layer, units in use; ``protected``: by parameter, weights protected."""
        protected = net.protection().fraction(exact=self._exact)
        return {"capacity": dict(net.capacity()), "protected": protected}

    def explain_divergence(self, net: HATNetwork, optimizer: Optimizer) -> str:
        """Nothing of HAT's own."""
        return ""

    def outlook(self, net: HATNetwork, task: int) -> str:
        """The share of units that neither an earlier task uses nor this one is about to."""
        return f"free {100 * self.free_capacity(net, task):.1f} %"

    def free_capacity(self, net: HATNetwork, task: int) -> float:
        """The same share as a number in [0, 1]."""
        return 1 - float((net.used() | net.hard_mask(task)).double().mean())

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """Why HAT cannot run on this problem in this setting; empty where it can."""
        return hidden_task_reasons("HAT", setting) + no_classes_reasons(problem, setting)
