"""What a person sees while a run goes on: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from maskcl.callback import Callback

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from torch import Tensor

# Reading the loss makes a GPU wait; a person does not read faster than this.
SECONDS_BETWEEN_LOOKS = 0.25


def display(console: Console, tasks: int, epochs: int, metric: str = "accuracy") -> Lines | Bars:
    """Bars where the console is a terminal, else lines. Both are context managers."""
    kind = Bars if console.is_terminal else Lines
    return kind(console, tasks, epochs, metric)


class Lines(Callback):
    """A line for each epoch and each task, for logs."""

    def __init__(self, console: Console, tasks: int, epochs: int, metric: str = "accuracy") -> None:
        self._console, self._tasks, self._epochs = console, tasks, epochs
        self._metric = metric

    def __enter__(self) -> Lines:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Print what the epoch came to."""
        self._say(
            f"task {task + 1}/{self._tasks} epoch {epoch + 1}/{self._epochs} "
            f"loss {loss:.4f} accuracy {accuracy:.4f} {outlook}"
        )

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """Print the test score on every task so far."""
        self._say(_after(task, self._tasks, scores, self._metric))

    def _say(self, text: str) -> None:
        # soft_wrap: a log's line stays one line whatever the width. flush: `tail -f` sees it.
        self._console.print(text, soft_wrap=True, highlight=False)
        self._console.file.flush()


class Bars(Callback):
    """A bar over the tasks and one over the epochs of the task, with the last figures."""

    def __init__(self, console: Console, tasks: int, epochs: int, metric: str = "accuracy") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console, self._tasks, self._epochs = console, tasks, epochs
        self._metric = metric
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task_bar = self._progress.add_task("", total=tasks, figures="")
        self._epoch_bar = self._progress.add_task("", total=1, figures="")
        self._looked = 0.0
        self._batches = 1
        self._figures = ""

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def on_task_start(self, task: int, epochs: int, first_epoch: int) -> None:
        """Name the task on its bar."""
        self._progress.update(
            self._task_bar, description=f"task {task + 1}/{self._tasks}", completed=task
        )

    def on_epoch_start(self, task: int, epoch: int, batches: int) -> None:
        """Start the epoch's bar."""
        self._batches = batches
        self._progress.reset(
            self._epoch_bar,
            total=batches,
            description=f"epoch {epoch + 1}/{self._epochs}",
            figures=self._figures,
        )

    def on_step(self, task: int, epoch: int, batch: int, loss: Tensor) -> None:
        """Move the bar; read the loss now and then."""
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        self._progress.update(
            self._epoch_bar, completed=batch + 1, figures=f"loss {loss.item():.4f}"
        )

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Show the epoch's figures until the next ones."""
        self._figures = f"loss {loss:.4f}  accuracy {accuracy:.3f}  {outlook}"
        self._progress.update(self._epoch_bar, completed=self._batches, figures=self._figures)

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """Leave a line above the bars."""
        self._progress.update(self._task_bar, completed=task + 1)
        self._console.print(_after(task, self._tasks, scores, self._metric), highlight=False)


def _after(task: int, tasks: int, scores: np.ndarray, metric: str) -> str:
    shown = " ".join(f"{score:.3f}" for score in scores[: task + 1])
    return f"after task {task + 1}/{tasks}: test {metric} {shown}"
