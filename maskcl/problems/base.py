"""What the trainer asks of a problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.data import Dataset


class Problem(Protocol):
    """Adapter between a kind of data and the training loop.

    Training batches are whatever `forward` understands; the trainer only moves their tensors to
    the device. Test batches hold inputs alone: the labels stay in the scenario.
    """

    name: str

    def train_batches(
        self, dataset: Dataset[Any], order: list[int], batch_size: int
    ) -> Iterator[Any]:
        """Batches of ``dataset``'s samples in the given order."""
        ...

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """How many batches `train_batches` yields for that many samples."""
        ...

    def test_batches(self, inputs: Dataset[Any], batch_size: int) -> Iterator[Any]:
        """Batches of inputs without labels, in the dataset's order."""
        ...

    def forward(self, net: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(logits, target, weight)`` of a training batch; weight per sample or None."""
        ...

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Loss of a batch, 0-d."""
        ...

    def predict(self, net: nn.Module, batch: Any) -> Tensor:
        """Predictions for a test batch."""
        ...

    def predictions(self, logits: Tensor) -> Tensor:
        """The predictions that these logits stand for."""
        ...
