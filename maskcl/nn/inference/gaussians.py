"""Scores of classes from their moments: linear discriminants, and Gaussians of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskcl.nn.inference.statistics import TaskStatistics

# Shrinkage by features over samples, of the shared covariance and of a task's: chosen on validation
# data, docs/task-inference.md.
SHARED, OWN = 0.1, 1.0


@dataclass(frozen=True)
class Discriminants:
    """Linear discriminant analysis of all classes with one covariance.

    Attributes:
        weight: [C, F].
        bias: [C].
    """

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(
        cls, statistics: Sequence[TaskStatistics], scatter: Tensor, shrinkage: float | None
    ) -> Discriminants:
        """From tasks' class means and counts, and the sum of their scatters.

        Args:
            statistics: by task; their classes one after the other are C.
            scatter: [F, F].
            shrinkage: see ``TaskInference``.
        """
        mean = torch.cat([s.mean for s in statistics]).double()
        number = float(torch.cat([s.count for s in statistics]).double().sum())
        if shrinkage is None:
            shrinkage = SHARED * mean.shape[1] / number
        covariance = shrunk(scatter.double() / number, shrinkage)
        weight = torch.cholesky_solve(mean.T, torch.linalg.cholesky(covariance)).T
        return cls(weight.float(), (-0.5 * (weight * mean).sum(1)).float())

    def scores(self, features: Tensor) -> Tensor:
        """[n, C] of [n, F]."""
        return torch.addmm(self.bias, features, self.weight.T)


@dataclass(frozen=True)
class Gaussians:
    """One task's classes as Gaussians; a covariance is in part the class's own.

    n / (n + F) of it, of n samples of the class, the rest is all classes' together.

    Attributes:
        mean: [C, F].
        whiten: [C, F, F], inverse of the covariance's Cholesky factor.
        offset: [C], half the covariance's log determinant.
    """

    mean: Tensor
    whiten: Tensor
    offset: Tensor

    @classmethod
    def of(cls, statistics: TaskStatistics, shrinkage: float | None) -> Gaussians:
        """From means, counts and scatters by class."""
        mean, count = statistics.mean, statistics.count.double()
        scatter, number = statistics.scatters().double(), float(count.sum())
        if shrinkage is None:
            shrinkage = OWN * mean.shape[1] / number
        tied = scatter.sum(0) / number
        own = scatter / count[:, None, None]
        share = (count / (count + mean.shape[1]))[:, None, None]
        factor = torch.linalg.cholesky(shrunk(torch.lerp(tied, own, share), shrinkage))
        eye = torch.eye(mean.shape[1], dtype=torch.float64, device=mean.device)
        whiten = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        offset = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return cls(mean.float(), whiten.float(), offset.float())

    def scores(self, features: Tensor) -> Tensor:
        """[n, C], log densities up to one constant, of [n, F]."""
        columns = [
            -0.5 * ((features - mean) @ whiten.T).square().sum(1) - offset
            for mean, whiten, offset in zip(self.mean, self.whiten, self.offset, strict=True)
        ]
        return torch.stack(columns, 1)


def shrunk(covariance: Tensor, shrinkage: float) -> Tensor:
    """[.., F, F] with a share of its mean variance added to every variance.

    Where nothing varies at all, ones are added: all directions count alike then.
    """
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    mean = variances.mean(-1, keepdim=True)
    added = torch.where(mean > 0, max(shrinkage, 1e-6) * mean, torch.ones_like(mean))
    return covariance + torch.diag_embed(added.expand_as(variances))
