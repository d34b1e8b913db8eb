"""What a run measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class Result:
    """What a run measured. T tasks.

    Attributes:
        matrix: [T, T], M[i, j] the score on task j after training task i; NaN where that says
            nothing (later tasks that have heads of their own).
        untrained: [T], scores of the network before training; NaN likewise.
        losses: for each task, the mean loss of each epoch.
        accuracies: for each task, the training accuracy of each epoch (soft masks, in [0, 1]).
        seconds: for each task, time in training and evaluation.
        capacity: after each task, layer -> share of its units that finished tasks use.
        protected: after each task, parameter -> share of its elements that are protected.
    """

    matrix: np.ndarray
    untrained: np.ndarray
    losses: list[list[float]]
    accuracies: list[list[float]]
    seconds: list[float]
    capacity: list[dict[str, float]] = dataclasses.field(default_factory=list)
    protected: list[dict[str, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def empty(cls, tasks: int) -> Result:
        """A result with nothing measured yet."""
        nan = np.full((tasks, tasks), np.nan)
        blank: list[list[list[float]]] = [[[] for _ in range(tasks)] for _ in range(2)]
        return cls(nan, nan[0].copy(), blank[0], blank[1], [0.0] * tasks)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        values = dataclasses.asdict(self)
        return values | {"matrix": self.matrix.tolist(), "untrained": self.untrained.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """The result that `to_dict` came from."""
        arrays = {k: np.array(values[k], dtype=np.float64) for k in ("matrix", "untrained")}
        return cls(**{**values, **arrays})
