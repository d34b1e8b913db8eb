"""One task's statistics as buffers: they go where the network goes, and go when the task does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.inference.class_sums import Moments, pack, unpack

NAMES = ("labels", "count", "mean", "scatter", "varies", "spread")


class TaskStatistics(nn.Module):
    """Moments of a task's classes. C classes, F features.

    Attributes:
        labels: int64 [C], as the task's targets name them.
        count: float32 [C], training samples.
        mean: float32 [C, F].
        scatter: float32, packed: one matrix, or one a class.
        varies: bool, which features vary in training; F is their number.
        spread: float32 [C, 2], mean and standard deviation of the training samples' own scores.
    """

    labels: Tensor
    count: Tensor
    mean: Tensor
    scatter: Tensor
    varies: Tensor
    spread: Tensor

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name in NAMES:
            self.register_buffer(name, tensors[name])

    @classmethod
    def of(cls, moments: Moments, varies: Tensor) -> TaskStatistics:
        """From moments of the features that vary; ``spread`` is 0 and 1."""
        standard = torch.tensor([0.0, 1.0], device=moments.count.device)
        return cls(
            {
                "labels": moments.labels,
                "count": moments.count.float(),
                "mean": moments.mean.float(),
                "scatter": pack(moments.scatter).float(),
                "varies": varies,
                "spread": standard.repeat(len(moments.labels), 1),
            }
        )

    @classmethod
    def like(cls, state: dict[str, Tensor], prefix: str, device: torch.device) -> TaskStatistics:
        """Not filled, of the sizes of a state's tensors; KeyError where one is missing."""
        return cls({name: torch.empty_like(state[prefix + name], device=device) for name in NAMES})

    def is_whole(self) -> bool:
        """Whether the tensors' sizes and dtypes go together, as those of a file may not."""
        classes, features = len(self.labels), int(self.varies.sum())
        triangle = features * (features + 1) // 2
        floats = self.count, self.mean, self.scatter, self.spread
        return (
            self.labels.dtype == torch.int64
            and self.varies.dtype == torch.bool
            and all(tensor.dtype == torch.float32 for tensor in floats)
            and self.labels.shape == self.count.shape == (classes,)
            and self.mean.shape == (classes, features)
            and self.spread.shape == (classes, 2)
            and self.scatter.shape in ((triangle,), (classes, triangle))
        )

    def scatters(self) -> Tensor:
        """[F, F] or [C, F, F]."""
        return unpack(self.scatter, self.mean.shape[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Sums lose their meaning in half precision, where the network may be.
        def keep(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        return super()._apply(keep, recurse)
