"""MAS, memory aware synapses (Aljundi et al. 2018, arXiv 1711.09601), as hooks of any loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from maskcl.importance import estimate
from maskcl.methods.base import TaskData
from maskcl.methods.quadratic import Quadratic, QuadraticState

if TYPE_CHECKING:
    from maskcl.nn import ImportanceNetwork

REDUCTIONS = ("sample", "batch")


@dataclass(frozen=True)
class MAS(Quadratic):
    """Hyper-parameters of MAS and the hooks that apply them.

    After each task, the importance of a parameter is the mean over the task's training samples of
    |dF/dW|, F the squared norm of the network's output; labels play no part. Importances add up
    over tasks, and each step of later ones is charged strength * sum Omega (W - W*)^2, W* being the
    parameters after the task before (eq. 2 to 4).

    Args:
        strength: lambda. It goes with ``reduction`` and ``norm``: other importances are of another
            size, and want another strength. 1 is the paper's.
        reduction: ``sample``, the mean of |gradients| as the paper has it, whatever the batch size;
            ``batch``, |mean gradient| of each batch, as some implementations compute it: smaller,
            and smaller with larger batches, but defined where samples of a batch mix, as nodes and
            links do. A graph among graphs is a sample.
        norm: ``sum`` over outputs of their squares, or their ``mean``.
        decay: factor of earlier tasks' importances when a task's are added; 1 is the paper's sum.
        heads: whether an output layer that tasks share is held too: without it a head that answers
            for all tasks alike (domain, time) forgets. A task's own never moves after its task.

    Raises:
        ValueError: a value is outside its range; the message names it.
    """

    strength: float = 1.0
    reduction: str = "sample"
    norm: str = "sum"
    decay: float = 1.0
    heads: bool = False

    def __post_init__(self) -> None:
        self._check(reduction=REDUCTIONS, norm=("sum", "mean"))

    def _estimate(
        self, net: ImportanceNetwork, state: QuadraticState, data: TaskData, names: list[str]
    ) -> dict[str, Tensor]:
        return estimate(
            net,
            data.batches(),
            kind="mas",
            reduction=self.reduction,
            norm=self.norm,
            forward=data.forward,
            segments=data.segments,
            parameters=names,
        )
