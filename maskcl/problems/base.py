"""What the trainer asks of a problem."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Problem(Protocol):
    """Adapter between a kind of data and the training loop.

    Training batches are whatever `forward` understands; the trainer only moves their tensors to
    the device. Test batches hold inputs alone: the labels stay in the scenario.
    """

    @property
    def name(self) -> str:
        """What the samples are: "vision", "node", "link" or "graph"."""
        ...

    @property
    def targets(self) -> str:
        """What is learned of them, as `Scenario` has it: "classes", "values" or "multilabel"."""
        ...

    @property
    def likelihood(self) -> str:
        """Of targets given the outputs, as `importance.estimate` names it."""
        ...

    @property
    def reads_items(self) -> bool:
        """Whether batches are the dataset's items put together (`loading.batches`).

        Then worker processes may read them. A problem without this attribute reads on its own.
        """
        ...

    def train_batches(
        self,
        dataset: Any,
        order: Tensor,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[Any]:
        """Batches of ``dataset``'s samples in the given order, int64 [n].

        Chance comes from ``generator``.
        """
        ...

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """How many batches `train_batches` yields for that many samples."""
        ...

    def test_batches(self, inputs: Any, batch_size: int) -> Iterator[Any]:
        """Batches of inputs without labels, in the dataset's order."""
        ...

    def forward(self, net: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(logits, target, weight)`` of a training batch; weight per sample or None."""
        ...

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """Loss of a batch, 0-d."""
        ...

    def predict(self, net: nn.Module, batch: Any) -> Tensor:
        """Predictions for a test batch, as the scenario scores them."""
        ...

    def predictions(self, logits: Tensor) -> Tensor:
        """The labels that these logits stand for."""
        ...

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """How many samples of a training batch are right, 0-d; NaN where none can be."""
        ...

    def describe(self) -> dict[str, Any]:
        """All that a result depends on, as a JSON object."""
        ...


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Of the samples' losses [n] by their weights [n], 0-d; 0 without weight."""
    total = weight.sum()
    return (losses * weight).sum() / torch.where(total == 0, 1, total)
