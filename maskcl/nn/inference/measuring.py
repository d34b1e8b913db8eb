"""A task's statistics from its training samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.collective import processes
from maskcl.nn.inference.class_sums import ClassSums
from maskcl.nn.inference.gaussians import Gaussians
from maskcl.nn.inference.statistics import TaskStatistics


class _Probe(nn.Module):
    """Stands where the network would: its output is the samples' features."""

    def __init__(self, features: Callable[..., Tensor]) -> None:
        super().__init__()
        self._features = features

    def forward(self, *args: Any) -> Tensor:
        return self._features(args)


def measure(
    task: int,
    features: Callable[..., Tensor],
    data: Any,
    shrinkage: float | None,
    *,
    own: bool,
    device: torch.device,
) -> TaskStatistics:
    """Statistics of a task's training samples, all processes' together.

    Args:
        task: named in messages.
        features: arguments of the network, a tuple -> [n, F].
        data: a ``methods.TaskData``.
        shrinkage: of the Gaussians.
        own: scatters by class, of features that vary alone, and the samples' own scores.
        device: of the network.

    Raises:
        ValueError: there is no sample, or features are not finite.
    """
    probe = _Probe(features)
    sums: ClassSums | None = None
    for batch in data.batches():
        found, labels = _labelled(task, data.forward(probe, batch))
        if sums is None:
            sums = ClassSums(found.shape[1], own, found.device)
            if processes()[0] > 1:
                _widest(found.shape[1], found.device)
        sums.add(found, labels)
    sums = sums or _sums_of_none(own, device)
    if sums is None:
        raise ValueError(f"TaskInference: task {task} has no training sample to measure")
    moments = sums.moments()
    if not bool(moments.scatter.isfinite().all()):
        raise ValueError(f"TaskInference: features of task {task} are not all finite")
    varies = torch.ones(moments.mean.shape[1], dtype=torch.bool, device=moments.mean.device)
    if not own:
        return TaskStatistics.of(moments, varies)
    # Closed units say nothing, and would take room.
    varies = moments.scatter.diagonal(dim1=-2, dim2=-1).sum(0) > 0
    scatter = moments.scatter[:, varies][:, :, varies]
    statistics = TaskStatistics.of(
        dataclasses.replace(moments, mean=moments.mean[:, varies], scatter=scatter), varies
    )
    gaussians = Gaussians.of(statistics, shrinkage)
    statistics.spread.copy_(_spread(task, gaussians, statistics, probe, data))
    return statistics


def _sums_of_none(own: bool, device: torch.device) -> ClassSums | None:
    """Of a process that has no sample, where another has; None where nobody has."""
    width = _widest(0, device) if processes()[0] > 1 else 0
    return ClassSums(width, own, device) if width else None


def _widest(width: int, device: torch.device) -> int:
    """The number of features, which a process without a sample learns from the others."""
    found = torch.tensor(width, device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def _spread(
    task: int, gaussians: Gaussians, statistics: TaskStatistics, probe: nn.Module, data: Any
) -> Tensor:
    """[C, 2], mean and standard deviation of the samples' scores for their own class."""
    shape = 3, len(statistics.labels)
    sums = torch.zeros(shape, dtype=torch.float64, device=statistics.mean.device)
    for batch in data.batches():
        features, labels = _labelled(task, data.forward(probe, batch))
        place = torch.searchsorted(statistics.labels, labels)
        scores = gaussians.scores(features[:, statistics.varies])
        own = scores.gather(1, place[:, None])[:, 0].double()
        for power in range(3):
            sums[power].index_add_(0, place, own**power)
    if processes()[0] > 1:
        torch.distributed.all_reduce(sums)
    mean = sums[1] / sums[0]
    deviation = (sums[2] / sums[0] - mean**2).clamp_min(0).sqrt()
    return torch.stack([mean, torch.where(deviation > 0, deviation, 1.0)], 1).float()


def _labelled(task: int, found: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor]:
    features, labels = found
    if labels is None or labels.is_floating_point() or labels.shape != features.shape[:1]:
        shown = "None" if labels is None else f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(
            f"TaskInference: the targets of task {task} are {shown}, wanted a class for each of"
            f" {len(features)} samples, int64"
        )
    return features, labels.long()
