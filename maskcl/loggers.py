"""Callbacks that keep a run's figures: a CSV file, TensorBoard's event files."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl.callback import Callback
from maskcl.files import replacing

if TYPE_CHECKING:
    import numpy as np

_COLUMNS = ("task", "epoch", "figure", "value")


class CSVLogger(Callback):
    """A line for each figure: ``task,epoch,figure,value``, tasks and epochs numbered from 0.

    Figures are ``loss`` and ``accuracy`` of training after each epoch, and after a task
    ``test of task K`` for each that was scored; they stand at the task's last epoch. The file is
    whole at every moment. A run that is resumed goes on in it, and what it trains again replaces
    what stood there.

    Args:
        path: of the file; its folder exists.

    Raises:
        FileExistsError: (when ``fit`` starts) there is such a file and the run is not resumed.
        ValueError: (likewise) the file of a resumed run is none of this kind.
    """

    is_once = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._rows: list[tuple[int, int, str, str]] = []
        self._epoch = 0

    def on_fit_start(self, resume: bool) -> None:
        """Take up what a resumed run has written."""
        self._rows = []
        if not self.path.exists():
            return
        if not resume:
            raise FileExistsError(f"CSVLogger: {self.path} exists, wanted a new file")
        head, *rows = csv.reader(io.StringIO(self.path.read_text()))
        if tuple(head) != _COLUMNS:
            raise ValueError(f"CSVLogger: {self.path} has columns {head}, wanted {_COLUMNS}")
        self._rows = [(int(task), int(epoch), name, value) for task, epoch, name, value in rows]

    def on_task_start(self, task: int, epochs: int, first_epoch: int) -> None:
        """Forget what is trained again."""
        self._rows = [row for row in self._rows if row[:2] < (task, first_epoch)]
        self._catch_up(task)

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Write the epoch's figures."""
        self._epoch = epoch
        self._add(task, {"loss": loss, "accuracy": accuracy})

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """Write the scores on the tasks so far."""
        self._add(task, {f"test of task {k}": score for k, score in enumerate(scores.tolist())})

    def on_fit_end(self, result: Any) -> None:
        """Write the last task's scores where a run was killed before."""
        self._catch_up(len(result.matrix))

    def _catch_up(self, tasks: int) -> None:
        """Scores on the first tasks that were in the checkpoint when the run was killed."""
        for task in sorted({row[0] for row in self._rows if row[0] < tasks}):
            own = [row for row in self._rows if row[0] == task]
            if not any(name.startswith("test of") for _, _, name, _ in own):
                self._epoch = max(epoch for _, epoch, _, _ in own)
                self.on_task_end(task, self.trainer.result.matrix[task])

    def _add(self, task: int, figures: dict[str, float]) -> None:
        self._rows += [
            (task, self._epoch, name, repr(value))
            for name, value in figures.items()
            if not math.isnan(value)
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(self._rows)
        with replacing(self.path) as temporary:
            temporary.write_text(text.getvalue())


class TensorBoardLogger(Callback):
    """TensorBoard's event files: ``train/loss``, ``train/accuracy``, ``test/task K``.

    The step of ``train/...`` counts epochs over all tasks, that of ``test/...`` is the task trained
    last.

    Args:
        folder: for the event files; made where it is absent.

    Raises:
        ImportError: (when ``fit`` starts) there is no tensorboard.
    """

    is_once = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def on_fit_start(self, resume: bool) -> None:
        """Open the files."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoardLogger needs tensorboard: pip install tensorboard") from (
                error
            )
        self._writer = SummaryWriter(os.fspath(self.folder))  # type: ignore[no-untyped-call]

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Write the epoch's figures."""
        step = task * self.trainer.epochs + epoch
        self._writer.add_scalar("train/loss", loss, step)
        if not math.isnan(accuracy):
            self._writer.add_scalar("train/accuracy", accuracy, step)
        self._writer.flush()

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """Write the scores on the tasks so far."""
        for k, score in enumerate(scores.tolist()):
            if not math.isnan(score):
                self._writer.add_scalar(f"test/task {k}", score, task)
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
