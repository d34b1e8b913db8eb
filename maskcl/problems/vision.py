"""Classification of images (or of any tensors of one shape)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate


class Vision:
    """Cross-entropy classification of samples ``(x, y)``, y the label inside its task."""

    name = "vision"

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """How many batches `train_batches` yields for that many samples."""
        full, rest = divmod(num_samples, batch_size)
        return full + int(rest > 1 or full == 0)

    def train_batches(
        self, dataset: Dataset[Any], order: Sequence[int], batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``(x[B, ...], y[B])`` of the samples in the given order.

        A single sample that would be left over joins the batch before it: batch statistics of
        one sample do not exist.
        """
        last = self.num_batches(len(order), batch_size) - 1
        for i in range(last + 1):
            stop = len(order) if i == last else (i + 1) * batch_size
            yield _collect(dataset, order[i * batch_size : stop])

    def test_batches(self, inputs: Dataset[Any] | Tensor, batch_size: int) -> Iterator[Tensor]:
        """Batches ``x[B, ...]`` in order."""
        count = len(inputs)  # type: ignore[arg-type]
        for first in range(0, count, batch_size):
            batch = _collect(inputs, range(first, min(first + batch_size, count)))
            yield batch[0] if isinstance(batch, (tuple, list)) else batch

    def forward(
        self, net: nn.Module, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(logits[B, classes], target[B], None)``."""
        x, y = batch
        return net(x), y, None

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross-entropy, the mean over samples (weighted where ``weight[B]`` is given)."""
        if weight is None:
            return F.cross_entropy(logits, target)
        losses = F.cross_entropy(logits, target, reduction="none")
        return (losses * weight).sum() / weight.sum()

    def predict(self, net: nn.Module, batch: Tensor) -> Tensor:
        """Predicted labels int64[B] of inputs ``x[B, ...]``."""
        return self.predictions(net(batch))

    def predictions(self, logits: Tensor) -> Tensor:
        """The class with the largest logit, int64[B]."""
        return logits.argmax(dim=1)


def _collect(dataset: Any, indices: Sequence[int]) -> Any:
    """The samples at ``indices`` as one batch.

    Data in memory are indexed all at once: tensors, and data sets with ``take(indices)``.
    """
    if isinstance(dataset, Tensor):
        return dataset[torch.as_tensor(indices)]
    if hasattr(dataset, "take"):
        return dataset.take(torch.as_tensor(indices))
    if type(dataset) is TensorDataset:
        index = torch.as_tensor(indices)
        return tuple(t[index] for t in dataset.tensors)
    return default_collate([dataset[i] for i in indices])
