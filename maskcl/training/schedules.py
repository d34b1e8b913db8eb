"""Learning rates over a task: any scheduler of torch's, and a few by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from maskcl.checkpoint import CheckpointError
from maskcl.training.plain_state import pack, unpack

SchedulerFn = Callable[[Optimizer], LRScheduler] | Callable[[Optimizer, int], LRScheduler]

NAMED = ("constant", "cosine", "step", "plateau", "onecycle")
PERIODS = ("epoch", "step")
# HAT's own code divides by 3 after 5 epochs without a lower loss.
_PLATEAU_FACTOR, _PLATEAU_PATIENCE = 1 / 3, 5


class Schedule:
    """A task's scheduler, stepped as often as it was made for.

    Args:
        scheduler: of the task's optimizer.
        by: ``epoch`` or ``step``.
    """

    def __init__(self, scheduler: LRScheduler, by: str) -> None:
        self.scheduler, self.by = scheduler, by

    def after_step(self) -> None:
        """After an optimizer's step."""
        if self.by == "step":
            self.scheduler.step()

    def after_epoch(self, loss: float, score: float) -> None:
        """After an epoch; one that waits for a figure to stand still gets that.

        Args:
            loss: what its mode ``min`` watches.
            score: what its mode ``max`` watches.
        """
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss if self.scheduler.mode == "min" else score)
        elif self.by == "epoch":
            self.scheduler.step()

    def describe(self) -> dict[str, str]:
        """What a run depends on."""
        return {"name": type(self.scheduler).__name__, "by": self.by}

    def state_dict(self) -> tuple[dict[str, Tensor], Any]:
        """The scheduler's state as tensors and a JSON value; lambdas are made anew instead.

        Raises:
            TypeError: something of it is neither.
        """
        tensors: dict[str, Tensor] = {}
        return tensors, pack(self.scheduler.state_dict(), "state", tensors)

    def load_state_dict(self, tensors: dict[str, Tensor], packed: Any) -> None:
        """Take over `state_dict`'s result.

        Raises:
            CheckpointError: it is of another kind of scheduler, or none.
        """
        name = type(self.scheduler).__name__
        try:
            state = unpack(packed, tensors)
            if state.keys() != self.scheduler.state_dict().keys():
                raise ValueError("it has other values")
            self.scheduler.load_state_dict(state)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise CheckpointError(f"the checkpoint's scheduler is no {name}: {error}") from None


def make_schedule(
    scheduler_fn: SchedulerFn, optimizer: Optimizer, by: str, count: int, *, is_saved: bool
) -> Schedule:
    """A task's schedule.

    Args:
        scheduler_fn: as the trainer's.
        optimizer: of the task.
        by: ``epoch`` or ``step``.
        count: of them; given to a function that cannot do without.
        is_saved: whether its state has to fit into a checkpoint.

    Raises:
        TypeError: it makes no scheduler of torch's, one of another optimizer, or one whose state
            no checkpoint can hold.
        ValueError: it waits for an epoch's figure, and is to be stepped more often.
    """
    make: Any = scheduler_fn
    scheduler: Any = make(optimizer) if takes(make, 1) else make(optimizer, count)
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(
            f"Trainer: scheduler_fn returned {_shown(scheduler)}, wanted a scheduler of"
            " torch.optim.lr_scheduler"
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise TypeError(
            "Trainer: scheduler_fn returned a scheduler of another optimizer, wanted one of the"
            " optimizer that it was given"
        )
    if isinstance(scheduler, ReduceLROnPlateau) and by == "step":
        raise ValueError(
            "Trainer: schedule_by is 'step', and a ReduceLROnPlateau waits for an epoch's figure;"
            " wanted 'epoch'"
        )
    schedule = Schedule(scheduler, by)
    if is_saved:
        try:
            schedule.state_dict()
        except TypeError as error:
            raise TypeError(
                f"Trainer: scheduler_fn's {type(scheduler).__name__}: {error}"
            ) from None
    return schedule


def takes(function: Any, count: int) -> bool:
    """Whether a function can be called with so many arguments, and no others."""
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # one of C, which says nothing
        return True
    return True


def named_schedule(name: str, warmup: float = 0.0) -> tuple[SchedulerFn | None, str]:
    """A schedule of the optimizer's rate, as a trainer's ``scheduler_fn`` and ``schedule_by``.

    Args:
        name: ``constant``; ``cosine``, to 0 over the task (Loshchilov and Hutter 2017, without
            restarts); ``step``, a tenth from half of the task's steps on and a hundredth from three
            quarters on; ``plateau``, a third after 5 epochs without a lower loss (of validation,
            where there is one), as HAT's original code has it; ``onecycle`` (Smith and Topin 2018),
            from a 25th up to the rate and down to nearly 0.
        warmup: the share of the task's steps over which the rate first rises from near 0, of the
            first three.

    Raises:
        ValueError: there is no such name, or a warmup that it does not have.
    """
    if name not in NAMED:
        raise ValueError(f"schedule is {name!r}, wanted one of {', '.join(NAMED)}")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup is {warmup!r}, wanted a share of at least 0 and below 1")
    if warmup and name in ("plateau", "onecycle"):
        raise ValueError(f"warmup is {warmup:g}, and the schedule {name} has none; wanted 0")
    if name == "plateau":
        return _plateau, "epoch"
    if name == "onecycle":
        return _onecycle, "step"
    if name == "constant" and not warmup:
        return None, "epoch"

    def make(optimizer: Optimizer, steps: int) -> LRScheduler:
        return LambdaLR(optimizer, lambda step: _factor(name, step, steps, warmup * steps))

    return make, "step"


def _factor(name: str, step: int, steps: int, warmup: float) -> float:
    """What the rate is multiplied by in a step."""
    if step < warmup:
        return (step + 1) / (math.floor(warmup) + 1)
    if name == "cosine":
        done = (step - warmup) / max(steps - warmup, 1)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    if name == "step":
        return 1.0 if step < 0.5 * steps else 0.1 if step < 0.75 * steps else 0.01
    return 1.0


def _plateau(optimizer: Optimizer, epochs: int) -> LRScheduler:
    return ReduceLROnPlateau(optimizer, factor=_PLATEAU_FACTOR, patience=_PLATEAU_PATIENCE)


def _onecycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    return OneCycleLR(optimizer, rates, total_steps=max(steps, 2), cycle_momentum=False)


def _shown(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
