"""What a training loop tells whoever watches it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class Callback:
    """What may be hooked into; override what you need. Tasks and epochs are numbered from 0.

    Attributes:
        trainer: the `maskcl.Trainer` that calls, with its ``net``, ``scenario``, ``epochs``, ...;
            it sets this before ``on_fit_start``. None before.
        is_once: of processes that share a run, the first alone calls it: for what shows or writes.
    """

    trainer: Any = None
    is_once: bool = False

    def on_fit_start(self, resume: bool) -> None:
        """Before the first task; ``resume`` as given to ``fit``."""

    def on_task_start(self, task: int, epochs: int, first_epoch: int) -> None:
        """Before a task's first epoch here; ``first_epoch`` is above 0 after a resume."""

    def on_epoch_start(self, task: int, epoch: int, batches: int) -> None:
        """Before the first of ``batches`` steps."""

    def on_step(self, task: int, epoch: int, batch: int, loss: Tensor) -> None:
        """After a step. ``loss`` is 0-d on the device: reading it every step makes each wait."""

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Means over the epoch's samples, and the method's few words about its masks.

        Accuracy is NaN where no sample is right or wrong, as in regression.
        """

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """``scores`` is the row of the matrix of scores after this task, [T], NaN where unknown."""

    def on_fit_end(self, result: Any) -> None:
        """After the last task, with the `Result` that ``fit`` returns."""

    def close(self) -> None:
        """When ``fit`` is over, also where it raised or was interrupted: free what is held."""


class Callbacks:
    """Several callbacks, told in order. A context manager that closes all of them.

    Args:
        parts: those that are told.
        trainer: that tells; each part's ``trainer`` from now on.

    Raises:
        TypeError: one is no `Callback`.
    """

    def __init__(self, parts: Sequence[Callback], trainer: Any = None) -> None:
        for part in parts:
            if not isinstance(part, Callback):
                found = part.__name__ if isinstance(part, type) else type(part).__name__
                raise TypeError(
                    f"Trainer: callback is {found}, wanted an object of a Callback's class"
                )
        self._parts = list(parts)
        for part in parts:
            part.trainer = trainer

    def tell(self, hook: str, *values: Any) -> None:
        """Call a hook of each, such as ``on_step``."""
        for part in self._parts:
            getattr(part, hook)(*values)

    def __enter__(self) -> Callbacks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.ExitStack() as stack:  # all are closed, though one raises
            for part in self._parts:
                stack.callback(part.close)
