"""How every task of a run is trained, and what exists only while one is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from maskcl.checkpoint import describe_optimizer
from maskcl.methods import Method
from maskcl.methods.loss_scaling import NOT_SCALED
from maskcl.problems import Problem
from maskcl.training.best_epoch import BestEpoch
from maskcl.training.checks import made_optimizer
from maskcl.training.samples import Samples
from maskcl.training.schedules import Schedule, SchedulerFn, make_schedule
from maskcl.training.validation import Validation, split

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn.tasks.network import TaskNetwork


@dataclasses.dataclass
class Running:
    """The task in training.

    Attributes:
        task: of the scenario.
        index: the same task's number in the network.
        dataset: what it is trained on.
        held: what is held out of it; None for nothing.
        state: the method's.
        module: the network as Fabric wraps it, where Fabric has something to do.
        optimizer: likewise.
        schedule: of the optimizer's rates; None for none.
        best: the best epoch so far, where samples are held out.
        made: what optimizer and scheduler are, as a JSON object.
        guard: what keeps the optimizer off earlier tasks; has ``remove()``, or is None.
    """

    task: int
    index: int
    dataset: Any
    held: Any
    state: Any
    module: nn.Module
    optimizer: Optimizer
    schedule: Schedule | None = None
    best: BestEpoch | None = None
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    guard: Any = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How every task is trained.

    Attributes:
        net: the network.
        method: whose hooks each step calls.
        problem: makes outputs, loss and predictions of a batch.
        samples: batches in the order of the seed.
        optimizer_fn: makes a task's optimizer.
        scheduler_fn: makes a task's scheduler; None for none.
        schedule_by: ``epoch`` or ``step``.
        validation: what is held out; None for nothing.
        epochs: of a task.
        accumulate: batches a step.
        is_wrapped: whether ``Running.module`` and ``.optimizer`` are Fabric's.
        is_saved: whether there are checkpoints.
    """

    net: TaskNetwork
    method: Method
    problem: Problem
    samples: Samples
    optimizer_fn: Callable[[list[dict[str, Any]]], Optimizer]
    scheduler_fn: SchedulerFn | None
    schedule_by: str
    validation: Validation | None
    epochs: int
    accumulate: int
    is_wrapped: bool
    is_saved: bool

    @property
    def fabric(self) -> Fabric:
        """Device, precision and other processes."""
        return self.samples.fabric

    @property
    def scaler(self) -> Any:
        """The GradScaler of a Fabric with float16, one that does nothing for any other."""
        return getattr(self.fabric.strategy.precision, "scaler", None) or NOT_SCALED

    def steps(self, dataset: Any) -> int:
        """The optimizer's steps in an epoch."""
        return -(-self.samples.steps(dataset) // self.accumulate)

    def begin(self, task: int, index: int, dataset: Any, *, is_new: bool) -> Running:
        """Begin a task; what is returned is not protected yet.

        Args:
            task: of the scenario.
            index: the same task's number in the network.
            dataset: its training set.
            is_new: whether it is trained from its start, so that the method may warn of the plan.
        """
        held = None
        if self.validation is not None:
            dataset, held = split(dataset, self.validation, self.samples.seed, task)
        state = self.method.begin_task(self.net, index, seed=self.samples.seed)
        groups = self.method.parameter_groups(self.net, index)
        optimizer = made_optimizer(self.optimizer_fn, groups)
        kind = {"name": type(optimizer).__name__, "groups": describe_optimizer(optimizer)}
        run = Running(task, index, dataset, held, state, self.net, optimizer)
        run.made["optimizer"] = kind
        steps = self.epochs * self.steps(dataset)
        if is_new:
            self.method.check_plan(self.net, state, optimizer, steps)
        if self.scheduler_fn is not None:
            count = self.epochs if self.schedule_by == "epoch" else steps
            run.schedule = make_schedule(
                self.scheduler_fn, optimizer, self.schedule_by, count, is_saved=self.is_saved
            )
            run.made["scheduler"] = run.schedule.describe()
        if self.validation is not None:
            run.best = BestEpoch(self.net, keep=self.validation.restore)
        return run

    def is_last(self, run: Running, epoch: int) -> bool:
        """Whether a task ends with this epoch: its last, or one too many without a better."""
        patience = None if self.validation is None else self.validation.patience
        is_over = run.best is not None and run.best.is_over(epoch, patience)
        return is_over or epoch + 1 == self.epochs

    def protect(self, run: Running) -> None:
        """Keep the optimizer off earlier tasks, and give both to Fabric where it has work."""
        run.guard = self.method.protect(run.optimizer, self.net, run.state)
        if self.is_wrapped:
            run.module, run.optimizer = self.fabric.setup(self.net, run.optimizer)
