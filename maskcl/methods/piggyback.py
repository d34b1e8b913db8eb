"""Piggyback (Mallya et al. 2018): one frozen network, one learned mask of its weights a task."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from maskcl import ops
from maskcl.methods import crossing
from maskcl.methods.base import (
    PlanWarning,
    TaskData,
    TaskState,
    check_measurable,
    derive_seed,
    hidden_task_reasons,
    measure_task,
    no_classes_reasons,
)
from maskcl.nn.tasks.kept_bits import check_ranks, share_statistics
from maskcl.optim import FusedStep, fuse
from maskcl.settings import Setting
from maskcl.shard_sums import totals
from maskcl.sharded_modules import class_name
from maskcl.shards import whole

if TYPE_CHECKING:
    from maskcl.nn import PiggybackNetwork

_LEVELS = ("binary", "ternary", "ternary_symmetric", "topk")
_SPREADS = ("constant", "uniform")
_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}  # None: of a float64 weight float64


@dataclass(frozen=True)
class Piggyback:
    """Hyper-parameters of Piggyback and the hooks that apply them.

    Every weight has a real-valued score while a task trains, and the score decides whether the
    task keeps the weight. Only scores, heads and norms of the task's own are trained, so that an
    earlier task's outputs cannot change. The defaults are the paper's, whose Adam has rate 1e-4.

    Args:
        threshold: t; a weight is kept where its score is above it.
        init: where scores start; with ``uniform``, the bound of |score|.
        levels: ``binary`` 0 and 1; ``ternary`` also -1, where a score is below 0 (the original's
            rule); ``ternary_symmetric`` -1 where it is below -t; ``topk`` 1 for the share
            ``density`` of largest |score|. As the network's.
        spread: ``constant``, or ``uniform`` in +-init.
        inclusive: a weight is kept at the threshold too (BeGin's rule).
        density: the share of each layer's weights that ``topk`` keeps; None for the others.
        lr: learning rate of the scores; None: the optimizer's.
        head_lr: learning rate of head and norms; None: the optimizer's.
        score_dtype: ``float32``, or ``bfloat16``: half the bytes for scores and their gradients,
            and for the moments of an optimizer that keeps them in their parameters' dtype.
            ``protect`` has steps rounded at random then, as small ones would be lost.

    Raises:
        ValueError: a value is outside its range; the message names it.
    """

    later_tasks_defined: ClassVar[bool] = False

    threshold: float = 5e-3
    init: float = 1e-2
    levels: str = "binary"
    spread: str = "constant"
    inclusive: bool = False
    density: float | None = None
    lr: float | None = None
    head_lr: float | None = None
    score_dtype: str = field(default="float32", metadata={"later": True})

    def __post_init__(self) -> None:
        if self.levels == "soft":
            raise ValueError(
                "Piggyback: levels is 'soft', and a mask between 0 and 1 cannot be stored as bits;"
                f" wanted one of {', '.join(_LEVELS)}"
            )
        choices_of = {"levels": _LEVELS, "spread": _SPREADS, "score_dtype": tuple(_DTYPES)}
        for name, choices in choices_of.items():
            found = getattr(self, name)
            if found not in choices:
                raise ValueError(
                    f"Piggyback: {name} is {found!r}, wanted one of {', '.join(choices)}"
                )
        if not isinstance(self.inclusive, bool):
            raise ValueError(f"Piggyback: inclusive is {self.inclusive!r}, wanted True or False")
        signed = self.levels.startswith("ternary")
        self._check_number("threshold", 0 if signed else -math.inf, inclusive=signed)
        self._check_number("init", 0 if self.spread == "uniform" else -math.inf)
        for name in ("lr", "head_lr"):
            if getattr(self, name) is not None:
                self._check_number(name, 0)
        self._check_density()

    def _check_number(self, name: str, low: float, *, inclusive: bool = False) -> None:
        value = getattr(self, name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if is_number and math.isfinite(value) and (value > low or (inclusive and value == low)):
            return
        wanted = "" if low == -math.inf else f" at least {low}" if inclusive else f" above {low}"
        raise ValueError(f"Piggyback: {name} is {value!r}, wanted a finite number{wanted}")

    def _check_density(self) -> None:
        if self.levels != "topk":
            if self.density is not None:
                raise ValueError(
                    f"Piggyback: density is {self.density!r}, wanted None for {self.levels!r}"
                )
            return
        self._check_number("density", 0)
        if self.density > 1:  # type: ignore[operator]
            raise ValueError(f"Piggyback: density is {self.density}, wanted at most 1")

    def begin_task(self, net: PiggybackNetwork, task: int, *, seed: int = 0) -> PiggybackState:
        """Start ``task``: fresh scores from (seed, task), and only what it trains learns.

        Build the optimizer after this, from ``parameter_groups(net, task)``.

        Raises:
            RuntimeError: the task is finished.
            TypeError: the network has no scores.
            ValueError: the network's masks have other levels.
        """
        if not hasattr(net, "levels"):
            raise TypeError(
                f"Piggyback: net is a {class_name(net)}, wanted a PiggybackNetwork"
                " (maskcl.nn.to_piggyback makes one of an ordinary model)"
            )
        if net.levels != self.levels:
            raise ValueError(
                f"Piggyback: levels is {self.levels!r}, the network's are {net.levels!r}"
            )
        net.begin_task(
            task,
            threshold=self.threshold,
            init=self.init,
            spread=self.spread,
            inclusive=self.inclusive,
            density=self.density,
            generator=torch.Generator().manual_seed(derive_seed("scores", seed, task)),
            score_dtype=_DTYPES[self.score_dtype],
        )
        return PiggybackState(task, self._words(net), derive_seed("rounding", seed, task))

    def parameter_groups(self, net: PiggybackNetwork, task: int) -> list[dict[str, Any]]:
        """The scores, never with decay, which would pull them under the threshold; then the rest.

        Each has its rate where the method gives one. Before ``begin_task`` there are no scores.
        """
        scores = net.scores()
        mine = {id(p) for p in scores}
        rest = [p for p in net.task_parameters(task) if id(p) not in mine]
        groups: list[dict[str, Any]] = [{"params": scores, "weight_decay": 0.0}, {"params": rest}]
        for group, rate in zip(groups, (self.lr, self.head_lr), strict=True):
            if rate is not None:
                group["lr"] = rate
        return groups

    def check_plan(
        self, net: PiggybackNetwork, state: PiggybackState, optimizer: Optimizer, steps: int
    ) -> None:
        """Warn (`PlanWarning`) where ``steps`` steps of this optimizer cannot learn a mask.

        With Adam no score gets further than about rate x steps: see `crossing.reach`. With others
        nothing is known beforehand; ``end_task`` looks after them.

        Raises:
            ValueError: the optimizer does not hold all scores.
        """
        scores = {id(p) for p in net.scores()}
        groups = [g for g in optimizer.param_groups if any(id(p) in scores for p in g["params"])]
        held = scores & {id(p) for g in groups for p in g["params"]}
        if held != scores:
            raise ValueError(
                f"Piggyback: the optimizer holds the scores of {len(held)} of {len(scores)} layers,"
                " wanted all of parameter_groups(net, task)"
            )
        if any(g.get("weight_decay", 0) != 0 for g in groups):
            _warn(f"task {state.task}: weight decay on scores pulls them under the threshold")
        gap = crossing.gap(net.scores(), self.levels, self.threshold)
        reach = crossing.reach(optimizer, groups, steps)
        if reach is not None and gap > reach:
            _warn(
                f"task {state.task}: no score can cross the threshold. Scores start {gap:.3g} from"
                f" it (threshold {self.threshold:g}, init {self.init:g}), and"
                f" {type(optimizer).__name__} moves one by about its rate a step:"
                f" {reach / steps:g} x {steps} steps = {reach:.3g}. Wanted a rate of at least"
                f" {gap / steps:.3g} for scores (lr)"
            )

    def protect(
        self, optimizer: Optimizer, net: PiggybackNetwork, state: PiggybackState
    ) -> FusedStep | None:
        """Nothing to protect, as no other task reads what a task trains; a faster step.

        ``torch.optim``'s SGD, Adam and AdamW step through one op until ``remove()`` of what is
        returned; None for others, which keep their step. Scores of bfloat16 are rounded at random
        in it, and so is all else of that dtype; others' first step warns of what they lose.
        """
        how = "nearest" if self.score_dtype == "float32" else "stochastic"
        return fuse(optimizer, rounding=how, seed=state.rounding_seed)

    def before_step(self, net: PiggybackNetwork, state: PiggybackState, progress: float) -> None:
        """Of the masks nothing: one is as hard in the first step as at test."""
        net.take_shards()

    def loss_term(self, net: PiggybackNetwork, state: PiggybackState) -> float:
        """0.0: the loss is the problem's."""
        return 0.0

    def after_backward(
        self,
        net: PiggybackNetwork,
        state: PiggybackState,
        *,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Nothing."""

    def after_step(self, net: PiggybackNetwork, state: PiggybackState) -> None:
        """Nothing."""

    def end_task(
        self, net: PiggybackNetwork, state: PiggybackState, data: TaskData | None = None
    ) -> None:
        """Keep the task's mask as bits and drop the scores.

        Warns (`PlanWarning`) if the mask is the one that the task started with, bit for bit.

        Raises:
            RuntimeError: the base or an earlier task is no longer what it was, or processes hold
                different scores; nothing is recorded then.
        """
        if net.training_task != state.task:
            raise RuntimeError(
                f"Piggyback.end_task: task {state.task} is not in training (it was forgotten, or"
                " ended, after it began): begin it again, with a new optimizer"
            )
        check_measurable("Piggyback.end_task", net, data)
        check_ranks("Piggyback.end_task", net, net._changed_since("Piggyback.end_task"))
        share_statistics(module for _, module in net._own_modules(state.task))
        measure_task(net, state.task, data)
        words = self._words(net)
        net.finish_task(state.task, check=False)
        layers = net.layers
        moved = [(words[name] != start).any().long() for name, start in state.start.items()]
        if not bool(totals(moved, [layers[name].words for name in state.start]).any()):
            _warn(
                f"task {state.task}: not one bit of the mask differs from the start, as no score"
                " has crossed the threshold; a larger rate for scores (lr) or more steps would help"
            )

    def measure(self, net: PiggybackNetwork, task: int) -> dict[str, dict[str, float]]:
        """``off``: by layer, the share of weights that the task's mask removes."""
        return {"off": net.off(task)}

    def explain_divergence(self, net: PiggybackNetwork, optimizer: Optimizer) -> str:
        """Nothing of Piggyback's own."""
        return ""

    def outlook(self, net: PiggybackNetwork, task: int) -> str:
        """The share of weights that the mask would remove now."""
        sizes = {name: layer.weight.numel() for name, layer in net.layers.items()}
        off = sum(share * sizes[name] for name, share in net.off(task).items())
        return f"off {100 * off / max(sum(sizes.values()), 1):.1f} %"

    def free_capacity(self, net: PiggybackNetwork, task: int) -> None:
        """None: a mask takes no weight from later tasks."""

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """Why Piggyback cannot run on this problem in this setting; empty where it can."""
        return hidden_task_reasons("Piggyback", setting) + no_classes_reasons(problem, setting)

    def _words(self, net: PiggybackNetwork) -> dict[str, Tensor]:
        """By layer, the mask that the scores give now; of a sharded one this process's part."""
        pack = functools.partial(
            ops.pack_scores,
            threshold=self.threshold,
            levels=self.levels,
            inclusive=self.inclusive,
            density=self.density,
        )
        found = zip(net.layers.items(), net.scores(), strict=True)
        return {name: layer.cut_words(pack(whole(scores))) for (name, layer), scores in found}


@dataclass
class PiggybackState(TaskState):
    """What changes while one task is trained, apart from the network.

    Attributes:
        task: index of the task.
        start: by layer, the words of the mask that the task started with.
        rounding_seed: of the random numbers by which ``protect``'s steps round bfloat16 scores.
        scale: None; masks are hard throughout.
    """

    SAVED = ("task",)  # the rest follows from the seed

    task: int
    start: dict[str, Tensor] = field(repr=False)
    rounding_seed: int
    scale: None = None


def _warn(text: str) -> None:
    warnings.warn(f"Piggyback: {text}", PlanWarning, stacklevel=3)
