"""What changes while HAT trains one task."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import is_
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from maskcl.methods.base import TaskState
from maskcl.methods.loss_scaling import ScalerWatch
from maskcl.nn.tasks.kept_bits import FinishedTasks
from maskcl.optim import FusedStep
from maskcl.shards import is_sharded

if TYPE_CHECKING:
    from maskcl.nn import HATNetwork, Protection


@dataclass
class HATState(TaskState):
    """What changes while one task is trained.

    Attributes:
        task: index of the task.
        scale: s, a 0-d tensor on the network's device, filled in place.
        protection: what the tasks finished before use.
        trained: the parameters that the task trains.
        begun: the tasks that were finished when this one began.
        method: the `HAT` that began it.
        watch: of scalers of the loss.
        seed: of the rule ``random``.
        steps: optimizer steps so far.
        step: that stands in for the optimizer's own.
    """

    SAVED = ("task", "seed", "steps")

    task: int
    scale: Tensor
    protection: Protection
    trained: list[nn.Parameter]
    begun: FinishedTasks = field(repr=False)
    method: Any = field(repr=False)
    watch: ScalerWatch = field(default_factory=ScalerWatch, repr=False)
    seed: int = 0
    steps: int = 0
    step: FusedStep | None = field(default=None, repr=False)

    @property
    def is_fused(self) -> bool:
        """Whether the optimizer of all that the task trains steps by `FusedStep`."""
        return self.step is not None and self.step.is_active

    def follow_shards(self, net: HATNetwork) -> None:
        """Take the parameters over that ``fully_shard`` has put in the place of those of before."""
        trained = net.task_parameters(self.task)
        if any(map(is_sharded, trained)) and not all(map(is_, trained, self.trained)):
            self.begun.check("HAT.protect", net)
            self.protection, self.trained = net.protection(), trained
