"""Classification of images (or of any tensors of one shape)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from maskcl.problems.classification import Classification


class Vision(Classification):
    """Cross-entropy classification of samples ``(x, y)``, y the label inside its task."""

    name = "vision"

    def train_batches(
        self,
        dataset: Dataset[Any],
        order: Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``(x[B, ...], y[B])`` of the samples in the given order."""
        for rows in self._parts(order, batch_size):
            yield _collect(dataset, rows)

    def test_batches(self, inputs: Dataset[Any] | Tensor, batch_size: int) -> Iterator[Tensor]:
        """Batches ``x[B, ...]`` in order."""
        count = len(inputs)  # type: ignore[arg-type]
        for first in range(0, count, batch_size):
            batch = _collect(inputs, torch.arange(first, min(first + batch_size, count)))
            yield batch[0] if isinstance(batch, (tuple, list)) else batch

    def predict(self, net: nn.Module, batch: Tensor) -> Tensor:
        """Predicted labels int64[B] of inputs ``x[B, ...]``."""
        return super().predict(net, (batch, None))


def _collect(dataset: Any, indices: Tensor) -> Any:
    """The samples at ``indices``, int64 [n], as one batch.

    Data in memory are indexed all at once: tensors, and data sets with ``take(indices)``.
    """
    if isinstance(dataset, Tensor):
        return dataset[indices]
    if hasattr(dataset, "take"):
        return dataset.take(indices)
    if type(dataset) is TensorDataset:
        return tuple(t[indices] for t in dataset.tensors)
    return default_collate([dataset[i] for i in indices.tolist()])
