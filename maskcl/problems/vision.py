"""Classification of images (or of any tensors of one shape)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from maskcl.problems.classification import Classification
from maskcl.problems.loading import batches


class Vision(Classification):
    """Cross-entropy classification of samples ``(x, y)``, y the label inside its task."""

    name = "vision"
    reads_items = True

    def train_batches(
        self,
        dataset: Dataset[Any],
        order: Tensor | Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``(x[B, ...], y[B])`` of the samples in the given order.

        Where samples are read one by one, each batch's have a seed from ``generator`` for what they
        draw, whatever the workers.
        """
        return batches(dataset, self._parts(order, batch_size), generator)

    def test_batches(self, inputs: Dataset[Any] | Tensor, batch_size: int) -> Iterator[Tensor]:
        """Batches ``x[B, ...]`` in order; what samples draw as they are read is always the same."""
        rows = torch.arange(len(inputs))  # type: ignore[arg-type]
        draws = torch.Generator().manual_seed(0)
        for batch in batches(inputs, rows.split(batch_size), draws):
            yield batch[0] if isinstance(batch, (tuple, list)) else batch

    def predict(self, net: nn.Module, batch: Tensor) -> Tensor:
        """Predicted labels int64[B] of inputs ``x[B, ...]``."""
        return super().predict(net, (batch, None))
