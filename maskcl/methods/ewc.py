"""EWC, elastic weight consolidation (Kirkpatrick et al. 2017), and its online form, as hooks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskcl.collective import processes
from maskcl.importance import estimate
from maskcl.methods.base import TaskData, derive_seed
from maskcl.methods.mas import REDUCTIONS
from maskcl.methods.quadratic import Quadratic, QuadraticState
from maskcl.nn.tasks.heads import sees_one_class
from maskcl.settings import Setting

if TYPE_CHECKING:
    from maskcl.nn import ImportanceNetwork


@dataclass(frozen=True)
class EWC(Quadratic):
    """Hyper-parameters of EWC and the hooks that apply them.

    After each task, the importance of a parameter is its Fisher information F, the mean over the
    task's training samples of (d log p/dW)^2. Each step of later tasks is charged
    strength * sum_t sum F_t (W - W_t)^2, W_t being the parameters after task t (eq. 3). p is the
    problem's: of classes the outputs' softmax, of values (`problems.Regression`) a Gaussian of unit
    variance around the outputs, of multi-label targets each label's own.

    Online EWC (Schwarz et al. 2018) is ``decay`` below 1 with ``anchors="last"``.

    Args:
        strength: half the paper's lambda. It goes with ``reduction`` and ``labels``: other
            importances are of another size, and want another strength. The default was chosen on
            digits of 8x8 pixels.
        reduction: ``sample``, the mean of squared gradients, whatever the batch size; ``batch``,
            the squared mean gradient of each batch, as some implementations compute it.
        labels: whose probability p is: ``data``, the training labels; ``predicted``, the likeliest
            (not of values: there the gradient is 0); ``sampled``, drawn from the network's own
            distribution, which alone gives the Fisher information itself.
        decay: factor of earlier tasks' importances when a task's are added.
        anchors: ``each``: every task pulls to where the parameters were after it, in one anchor
            that has the same gradient; ``last``: all pull to where they were after the last task.
        heads: whether an output layer that tasks share is held too: without it a head that answers
            for all tasks alike (domain, time) forgets. A task's own never moves after its task.

    Raises:
        ValueError: a value is outside its range; the message names it.
    """

    strength: float = 10_000.0
    reduction: str = "sample"
    labels: str = "data"
    decay: float = 1.0
    anchors: str = "each"
    heads: bool = False

    def __post_init__(self) -> None:
        labels = ("data", "predicted", "sampled")
        self._check(reduction=REDUCTIONS, labels=labels, anchors=("each", "last"))

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """As of all; and the likeliest values, at which nothing has a gradient."""
        reasons = super().not_supported_reasons(problem, setting)
        if self.labels == "predicted" and problem.likelihood == "gaussian":
            reasons.append(
                'EWC: labels="predicted" measures nothing in regression, as the gradient of the'
                ' likelihood is 0 at the likeliest value; wanted labels="data" or "sampled"'
            )
        return reasons

    @property
    def _anchors(self) -> str:
        return "mean" if self.anchors == "each" else "last"

    def _estimate(
        self, net: ImportanceNetwork, state: QuadraticState, data: TaskData, names: list[str]
    ) -> dict[str, Tensor]:
        if sees_one_class(net):  # whose probability is 1 whatever the parameters are
            return {name: torch.zeros_like(net.get_parameter(name)) for name in names}
        generator = None
        if self.labels == "sampled":
            # Each process has samples of its own, and draws of its own for them.
            seed = derive_seed("labels", state.seed, state.task, processes()[1])
            generator = torch.Generator(net.finished.device).manual_seed(seed)
        return estimate(
            net,
            data.batches(),
            kind="fisher",
            labels=self.labels,
            likelihood=data.likelihood,
            reduction=self.reduction,
            forward=data.forward,
            segments=data.segments,
            parameters=names,
            generator=generator,
        )
