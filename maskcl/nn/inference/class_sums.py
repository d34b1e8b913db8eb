"""Sums over samples by class, and the moments that follow from them; no sample is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from maskcl.collective import processes

# Rows that are gathered before they are multiplied: batches may be small.
_ROWS = 1024


@dataclass(frozen=True)
class Moments:
    """What the sums say of a task's classes.

    Attributes:
        labels: int64 [C], those that have samples, ascending.
        count: float64 [C], samples.
        mean: float64 [C, F].
        scatter: float64 [F, F], or [C, F, F] by class: sum of (x - mean) (x - mean)'.
    """

    labels: Tensor
    count: Tensor
    mean: Tensor
    scatter: Tensor


class ClassSums:
    """Counts, sums and sums of outer products of features [n, F] by class.

    Args:
        features: F.
        by_class: outer products by class, else of all classes together.
        device: of the sums.
    """

    def __init__(self, features: int, by_class: bool, device: torch.device) -> None:
        self.by_class = by_class
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        self._count = empty
        self._total = empty.new_zeros(0, features)
        self._square = empty.new_zeros(0 if by_class else 1, features, features)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add samples.

        Args:
            features: [n, F].
            labels: int64 [n], from 0.
        """
        self._waiting.append((features, labels))
        if sum(len(labels) for _, labels in self._waiting) >= _ROWS:
            self._flush()

    def moments(self) -> Moments:
        """Of all samples of all processes."""
        self._flush()
        self._gather()
        present = self._count > 0
        count = self._count[present]
        mean = self._total[present] / count[:, None]
        if self.by_class:
            outer = torch.einsum("c,cf,cg->cfg", count, mean, mean)
            scatter = self._square[present] - outer
        else:
            scatter = self._square[0] - (mean * count[:, None]).T @ mean
        return Moments(torch.nonzero(present).flatten(), count, mean, scatter)

    def _flush(self) -> None:
        if not self._waiting:
            return
        features = torch.cat([f for f, _ in self._waiting])
        labels = torch.cat([y for _, y in self._waiting])
        self._waiting = []
        self._grow(int(labels.max()) + 1 if len(labels) else 0)
        self._count.index_add_(0, labels, self._count.new_ones(len(labels)))
        self._total.index_add_(0, labels, features.double())
        if not self.by_class:
            self._square[0] += _square(features)
            return
        for label in labels.unique().tolist():
            own = features[labels == label].double()
            self._square[label] += own.T @ own

    def _grow(self, classes: int) -> None:
        more = classes - len(self._count)
        if more <= 0:
            return
        self._count = torch.cat([self._count, self._count.new_zeros(more)])
        width = self._total.shape[1]
        self._total = torch.cat([self._total, self._total.new_zeros(more, width)])
        if self.by_class:
            self._square = torch.cat([self._square, self._square.new_zeros(more, width, width)])

    def _gather(self) -> None:
        """Add up the sums of all processes."""
        classes = len(self._count)
        if processes()[0] > 1:
            most = torch.tensor(classes, device=self._count.device)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
            self._grow(int(most))
            for sums in (self._count, self._total, self._square):
                torch.distributed.all_reduce(sums)


def _square(features: Tensor) -> Tensor:
    """float64 [F, F]: the sum over samples of x x', multiplied in the features' dtype.

    As (x - p)(x - p)' + (x - p) p' + p (x - p)' + p p' with p about the mean: what is the same for
    all samples would take all digits of a product, and the scatter is what is left without it.
    """
    pivot = features.mean(0)
    rest = features - pivot
    p, r = pivot.double(), rest.double().sum(0)
    mixed = torch.outer(r, p)
    return (rest.T @ rest).double() + mixed + mixed.T + len(features) * torch.outer(p, p)


def pack(matrix: Tensor) -> Tensor:
    """The upper triangles of symmetric [.., F, F], one row after the other: [.., F (F + 1) / 2]."""
    none = matrix.new_zeros(*matrix.shape[:-2], 0)
    return torch.cat([none, *(matrix[..., i, i:] for i in range(matrix.shape[-1]))], -1)


def unpack(packed: Tensor, features: int) -> Tensor:
    """The symmetric matrices that `pack` was given."""
    matrix = packed.new_zeros(*packed.shape[:-1], features, features)
    start = 0
    for i in range(features):
        row = packed[..., start : start + features - i]
        matrix[..., i, i:] = row
        matrix[..., i:, i] = row
        start += features - i
    return matrix
