"""What a run with task inference measured: both views of it, and what inference got right."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass
class InferenceScores:
    """Beside the scores where the task is inferred. T tasks; NaN where nothing was measured.

    Attributes:
        told: [T, T], after training task i the score on task j where its task is told.
        identified: [T, T], the share of task j's test samples whose task was inferred right.
        alone: [T, T], the score of linear discriminant analysis of the inputs, without a network.
        confusion: [T, T], after the last task: of task i's test samples those taken for task j.
    """

    told: np.ndarray
    identified: np.ndarray
    alone: np.ndarray
    confusion: np.ndarray

    @classmethod
    def empty(cls, tasks: int) -> InferenceScores:
        """Nothing measured yet."""
        told, identified, alone = (np.full((tasks, tasks), np.nan) for _ in range(3))
        return cls(told, identified, alone, np.zeros((tasks, tasks), dtype=np.int64))

    def with_room(self, tasks: int) -> InferenceScores:
        """The same with more tasks, of which nothing is measured yet."""
        new, count = InferenceScores.empty(tasks), len(self.told)
        for field in dataclasses.fields(self):
            getattr(new, field.name)[:count, :count] = getattr(self, field.name)
        return new

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InferenceScores:
        """From plain lists of the attributes."""
        matrices = {k: np.array(v, dtype=np.float64) for k, v in values.items()}
        return cls(**{**matrices, "confusion": np.array(values["confusion"], dtype=np.int64)})
