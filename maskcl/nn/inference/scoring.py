"""Scores of samples for the classes of every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.nn.inference.class_sums import unpack
from maskcl.nn.inference.first_layer import Product
from maskcl.nn.inference.gaussians import Discriminants, Gaussians
from maskcl.nn.inference.sample_features import SampleFeatures
from maskcl.nn.inference.statistics import TaskStatistics


class Scorer:
    """What some tasks' statistics make of a sample.

    Args:
        tasks: their indices.
        statistics: theirs.
        space: "shared" or "masked".
        shrinkage: see ``TaskInference``.
    """

    def __init__(
        self,
        tasks: Sequence[int],
        statistics: Sequence[TaskStatistics],
        space: str,
        shrinkage: float | None,
    ) -> None:
        self.tasks, self.statistics, self.space = list(tasks), list(statistics), space
        self._made_of = _versions(self.statistics)
        self._shared: Discriminants | None = None
        self._own: list[Gaussians] = []
        if space == "masked":
            self._own = [Gaussians.of(s, shrinkage) for s in self.statistics]
        else:
            # Statistics are a task's alone, so that dropping them forgets; here they add up.
            packed = torch.stack([s.scatter.double() for s in self.statistics]).sum(0)
            scatter = unpack(packed, self.statistics[0].mean.shape[1])
            self._shared = Discriminants.of(self.statistics, scatter, shrinkage)

    def is_of(self, tasks: Sequence[int], statistics: Sequence[TaskStatistics]) -> bool:
        """Whether it was made of these tasks' statistics as they are now."""
        return list(tasks) == self.tasks and _versions(statistics) == self._made_of

    def scores(self, net: Any, features: SampleFeatures, args: tuple[Any, ...]) -> list[Tensor]:
        """By task, [n, C] of its classes; one score compares with any other of the row.

        Raises:
            ValueError: inputs are of another size than those measured.
        """
        if self._shared is not None:
            found = self._shared.scores(self._checked(features(net, args), 0))
            return list(found.split([len(s.labels) for s in self.statistics], 1))
        scores, product = [], Product()
        for place, task in enumerate(self.tasks):
            own = self.statistics[place]
            with net.task(task):
                rows = self._checked(features(net, args, product), place)
            raw = self._own[place].scores(rows[:, own.varies])
            scores.append((raw - own.spread[:, 0]) / own.spread[:, 1])
        return scores

    def _checked(self, features: Tensor, place: int) -> Tensor:
        wanted = len(self.statistics[place].varies)
        if features.shape[1] != wanted:
            raise ValueError(
                f"TaskInference: the inputs have {features.shape[1]} features, wanted the {wanted}"
                f" that task {self.tasks[place]} was measured with"
            )
        return features


def _versions(statistics: Sequence[TaskStatistics]) -> list[tuple[int, int]]:
    return [(id(s.scatter), s.scatter._version) for s in statistics]
