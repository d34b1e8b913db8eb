"""What a training loop tells whoever watches it."""

from __future__ import annotations

import numpy as np
from torch import Tensor


class Callback:
    """What a progress display may hook into; override what you need."""

    def on_task_start(self, task: int, epochs: int, first_epoch: int) -> None:
        """Before a task's first epoch here; ``first_epoch`` is above 0 after a resume."""

    def on_epoch_start(self, task: int, epoch: int, batches: int) -> None:
        """Before the first of ``batches`` steps."""

    def on_step(self, task: int, epoch: int, batch: int, loss: Tensor) -> None:
        """After a step. ``loss`` is 0-d on the device: reading it every step makes each wait."""

    def on_epoch_end(
        self, task: int, epoch: int, loss: float, accuracy: float, outlook: str
    ) -> None:
        """Means over the epoch's samples, and the method's few words about its masks."""

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        """``scores`` is the row of the accuracy matrix after this task, [T]."""
