"""What a person sees while a run goes on: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from maskcl.callback import Callback

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from torch import Tensor

# Reading the loss makes a GPU wait; a person does not read faster than this.
SECONDS_BETWEEN_LOOKS = 0.25
# Of as many tasks each score is shown, of more their mean and the least.
MOST_SCORES = 10


def display(console: Console | None = None) -> Lines | Bars:
    """Bars where the console is a terminal, else lines.

    Args:
        console: None: standard error. Without rich lines.
    """
    if console is None:
        try:
            from rich.console import Console as RichConsole
        except ImportError:
            return Lines(sys.stderr)
        console = RichConsole(stderr=True)
    return Bars(console) if console.is_terminal else Lines(console.file)


class Lines(Callback):
    """A line for each epoch and each task, for logs.

    Args:
        file: written to, and flushed after each line: ``tail -f`` sees it.
    """

    is_once = True

    def __init__(self, file: TextIO | Any) -> None:
        self._file = file

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Print what the epoch came to."""
        figures = _figures(f"loss {loss:.4f}", accuracy, outlook, " ")
        self._say(f"{_place(self.trainer, task)} epoch {epoch + 1}/{self.trainer.epochs} {figures}")

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """Print the test score on every task so far."""
        self._say(_after(self.trainer, task, scores))

    def _say(self, text: str) -> None:
        self._file.write(text + "\n")
        self._file.flush()


class Bars(Callback):
    """A bar over the whole run with the time that is left, and under it the last figures.

    Args:
        console: a terminal.
    """

    is_once = True

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            expand=True,
        )
        self._text, self._last = "", ""
        self._looked = 0.0
        self._done, self._share, self._before = 0.0, 1.0, [0]
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=4)

    def on_fit_start(self, resume: bool) -> None:
        """Show the bar before anything else is done."""
        steps = _steps(self.trainer)
        self._before = [sum(steps[:task]) for task in range(len(steps) + 1)]
        self._row = self._bar.add_task("", total=self._before[-1])
        self._live.start()

    def on_task_start(self, task: int, epochs: int, first_epoch: int) -> None:
        """Name the task on the bar."""
        self._done = self._at(task, first_epoch)
        self._bar.update(self._row, description=_place(self.trainer, task), completed=self._done)
        self._last = ""

    def on_epoch_start(self, task: int, epoch: int, batches: int) -> None:
        """Name the epoch; the figures of the one before stay."""
        self._done = self._at(task, epoch)
        self._share = (self._at(task, epoch + 1) - self._done) / batches
        self._text = f"epoch {epoch + 1}/{self.trainer.epochs}"

    def on_step(self, task: int, epoch: int, batch: int, loss: Tensor) -> None:
        """Move the bar; read the loss now and then."""
        self._done += self._share
        now = time.monotonic()
        if now - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = now
        self._bar.update(self._row, completed=self._done)
        self._text = f"epoch {epoch + 1}/{self.trainer.epochs}  loss {loss.item():.4f}"

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Show the epoch's figures until the next ones."""
        self._last = _figures("", accuracy, outlook, "  ")
        self._text = f"epoch {epoch + 1}/{self.trainer.epochs}  loss {loss:.4f}"
        self._bar.update(self._row, completed=self._done)

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """Leave a line above the bar."""
        self._bar.update(self._row, completed=self._before[task + 1])
        self._console.print(_after(self.trainer, task, scores), highlight=False, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def _at(self, task: int, epoch: int) -> float:
        """Where the bar is before an epoch."""
        first, after = self._before[task : task + 2]
        return first + (after - first) * epoch / self.trainer.epochs

    def _picture(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        return Group(self._bar, Text("  ".join(part for part in (self._text, self._last) if part)))


def _steps(trainer: Any) -> list[int]:
    """How many batches each task is to take, none held out: the tasks' shares of the bar."""
    scenario = trainer.scenario
    return [
        trainer.epochs * trainer.samples.steps(scenario.train_set(task))
        for task in range(scenario.num_tasks)
    ]


def _place(trainer: Any, task: int) -> str:
    return f"task {task} ({task + 1} of {trainer.scenario.num_tasks})"


def _figures(loss: str, accuracy: float, outlook: str, between: str) -> str:
    known = "" if math.isnan(accuracy) else f"accuracy {accuracy:.4f}"
    return between.join(part for part in (loss, known, outlook) if part)


def _after(trainer: Any, task: int, scores: np.ndarray) -> str:
    """The scores after a task, of many their mean and the least."""
    found = [(score, k) for k, score in enumerate(scores[: task + 1].tolist()) if score == score]
    if len(found) > MOST_SCORES or len(found) <= task:
        least, where = min(found)
        mean = sum(score for score, _ in found) / len(found)
        shown = f"{mean:.3f} on average of {len(found)}, least {least:.3f} (task {where})"
    else:
        shown = " ".join(f"{score:.3f}" for score, _ in found)
    return f"after {_place(trainer, task)}: test {trainer.scenario.metric} {shown}"
