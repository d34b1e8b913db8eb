"""How the scores of the task in training are cut into its masks, and what is finished."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskcl.nn.tasks.state import TaskState
from maskcl.reference.weight_mask import threshold_for

LEVELS = ("binary", "ternary", "ternary_symmetric", "topk")
SPREADS = ("constant", "uniform")


@dataclass(frozen=True)
class Cut:
    """How the scores of the task in training become its masks.

    Attributes:
        task: index. threshold, inclusive, density: as for ``ops.piggyback_weight``.
    """

    task: int
    threshold: float
    inclusive: bool
    density: float | None

    def seen_by(self, dtype: torch.dtype, levels: str) -> Cut:
        """For bfloat16 scores with a threshold of theirs, whatever a layer turns scores into."""
        if dtype is not torch.bfloat16:
            return self
        return replace(self, threshold=threshold_for(dtype, levels, self.threshold))

    def numbers(self) -> Tensor:
        """All four for a ``state_dict``: float64 [4] on the CPU, 0 for a density of None."""
        values = [self.task, self.threshold, self.inclusive, self.density or 0.0]
        return torch.tensor(values, dtype=torch.float64)

    @staticmethod
    def of(numbers: Tensor) -> Cut:
        """The cut with these numbers."""
        task, threshold, inclusive, density = numbers.tolist()
        return Cut(int(task), threshold, bool(inclusive), density or None)


NO_CUT = Cut(-1, 0.0, False, None)
"""Stands for no task in training."""


class MaskState(TaskState):
    """What the layers of a PiggybackNetwork share; Python numbers, so that no forward waits.

    Attributes:
        cut: of the task in training, None where none is.
        done: the finished tasks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut: Cut | None = None
        self.done: frozenset[int] = frozenset()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "cut": self.cut, "done": self.done}


def planes(levels: str) -> int:
    """Bits a weight that a mask of these levels takes."""
    return 2 if levels.startswith("ternary") else 1


def check_start(owner: str, init: float, spread: str) -> None:
    """Raise ValueError unless scores can start like this."""
    if spread not in SPREADS:
        raise ValueError(f"{owner}: spread is {spread!r}, wanted one of {', '.join(SPREADS)}")
    is_number = isinstance(init, (int, float)) and math.isfinite(init)
    if not is_number or (spread == "uniform" and init <= 0):
        wanted = "a finite number above 0" if spread == "uniform" else "a finite number"
        raise ValueError(f"{owner}: init is {init!r}, wanted {wanted} for {spread!r}")


def check_score_dtype(owner: str, dtype: torch.dtype | None) -> None:
    """Raise ValueError unless scores can be kept in it."""
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(
            f"{owner}: score_dtype is {dtype!r}, wanted torch.float32, torch.bfloat16 or None"
        )


def check_levels(owner: str, levels: str) -> None:
    """Raise ValueError unless masks of these levels can be bits."""
    if levels not in LEVELS:
        raise ValueError(f"{owner}: levels is {levels!r}, wanted one of {', '.join(LEVELS)}")
