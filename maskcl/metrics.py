"""Metrics of a sequence of tasks, from its accuracy matrix.

``M[i, j]`` is the score on task j after training task i: rows are time, the last row is the final
model. Entries that were not measured are NaN; with one head a task, all above the diagonal.
A metric that is undefined is NaN with a reason, never 0.

Every function leaves its arguments as they are. Those that take ``M`` raise ValueError unless it
is a square matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Metric:
    """A value, or NaN and the reason why there is none."""

    value: float
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """{"value": float or None, "reason": str or None}: NaN is not JSON."""
        return {"value": None if math.isnan(self.value) else self.value, "reason": self.reason}


ONE_TASK = "one task has nothing to forget or to transfer"


def average_performance(matrix: ArrayLike) -> Metric:
    """ACC, also AP: mean over j of M[T-1, j] (Lopez-Paz and Ranzato 2017, eq. 2)."""
    m = _matrix(matrix)
    return _known(m, [(len(m) - 1, j) for j in range(len(m))]) or _metric(m[-1].mean())


def average_incremental(matrix: ArrayLike) -> Metric:
    """AIA: mean over i of the mean over j <= i of M[i, j] (Rebuffi et al. 2017)."""
    m = _matrix(matrix)
    return _known(m, _lower(m)) or _metric(np.mean([m[i, : i + 1].mean() for i in range(len(m))]))


def backward_transfer(matrix: ArrayLike) -> Metric:
    """BWT: mean over j < T-1 of M[T-1, j] - M[j, j]; negative is forgetting (Lopez-Paz 2017)."""
    m = _matrix(matrix)
    last = len(m) - 1
    if last == 0:
        return Metric(math.nan, ONE_TASK)
    needed = [(j, j) for j in range(last)] + [(last, j) for j in range(last)]
    return _known(m, needed) or _metric(np.mean(m[last, :last] - m.diagonal()[:last]))


def forward_transfer(matrix: ArrayLike, untrained: ArrayLike | None) -> Metric:
    """FWT: mean over j >= 1 of M[j-1, j] - b_j (Lopez-Paz and Ranzato 2017, eq. 4).

    Args:
        matrix: M.
        untrained: [T], b_j, the score of the untrained model on task j; None if not measured.
    """
    m = _matrix(matrix)
    if len(m) == 1:
        return Metric(math.nan, ONE_TASK)
    if untrained is None:
        return Metric(math.nan, "the untrained model was not scored")
    before = _vector(untrained, len(m), "untrained")
    if any(math.isnan(m[j - 1, j]) for j in range(1, len(m))):
        return Metric(math.nan, "tasks were not scored before they were trained")
    if np.isnan(before[1:]).any():
        return Metric(math.nan, "the untrained model was not scored on every task")
    return _metric(np.mean([m[j - 1, j] - before[j] for j in range(1, len(m))]))


def forgetting(matrix: ArrayLike) -> Metric:
    """F: mean over j < T-1 of (max over i < T-1 of M[i, j]) - M[T-1, j] (Chaudhry et al. 2018).

    A score from before task j was trained counts in the maximum where it was measured.
    """
    m = _matrix(matrix)
    last = len(m) - 1
    if last == 0:
        return Metric(math.nan, ONE_TASK)
    needed = [(i, j) for j in range(last) for i in range(j, last + 1)]
    unknown = _known(m, needed)
    return unknown or _metric(np.mean([np.nanmax(m[:last, j]) - m[last, j] for j in range(last)]))


def average_forgetting(matrix: ArrayLike) -> Metric:
    """AF as BeGin computes it: mean over j < T-1 of M[j, j] - M[T-1, j], which is -BWT."""
    backward = backward_transfer(matrix)
    return Metric(-backward.value + 0.0, backward.reason)


def intransigence(matrix: ArrayLike, joint: ArrayLike | None) -> Metric:
    """INT: mean over j of joint_j - M[j, j] (Chaudhry et al. 2018).

    Args:
        matrix: M.
        joint: [T], score on task j of a model trained on all tasks at once; None if there is none.
    """
    m = _matrix(matrix)
    if joint is None:
        return Metric(math.nan, "no joint training to compare with")
    reference = _vector(joint, len(m), "joint")
    if np.isnan(reference).any():
        return Metric(math.nan, "the joint model was not scored on every task")
    return _known(m, [(j, j) for j in range(len(m))]) or _metric(np.mean(reference - m.diagonal()))


def forgetting_ratio(
    matrix: ArrayLike, chance: ArrayLike | None, joint: ArrayLike | None
) -> Metric:
    """Rho after the last task: mean over j of (A_j - R_j)/(J_j - R_j) - 1 (HAT, eq. 6).

    0 is as good as joint training, -1 as bad as chance.

    Args:
        matrix: M; A_j = M[T-1, j].
        chance: [T], R_j, the score of a random classifier; None if not known.
        joint: [T], J_j, the score of joint training; None if there is none.
    """
    m = _matrix(matrix)
    if joint is None:
        return Metric(math.nan, "no joint training to compare with")
    if chance is None:
        return Metric(math.nan, "the score of a random classifier is not given")
    top, low = _vector(joint, len(m), "joint"), _vector(chance, len(m), "chance")
    if np.isnan(top).any() or np.isnan(low).any():
        return Metric(math.nan, "a reference was not scored on every task")
    if (top == low).any():
        where = int(np.flatnonzero(top == low)[0])
        return Metric(math.nan, f"joint training is at chance on task {where}")
    unknown = _known(m, [(len(m) - 1, j) for j in range(len(m))])
    return unknown or _metric(np.mean((m[-1] - low) / (top - low) - 1))


def average_accuracy_curve(matrix: ArrayLike) -> NDArray[np.float64]:
    """[T]: after each task i, the mean over j <= i of M[i, j]; NaN where one was not measured."""
    m = _matrix(matrix)
    return np.array([m[i, : i + 1].mean() for i in range(len(m))])


def mask_overlap(masks: ArrayLike) -> NDArray[np.float64]:
    """[T, T]: entry (i, j) is the share of task j's units that task i uses too.

    Args:
        masks: bool[T, U]. A column is NaN where task j uses no unit.
    """
    m = np.asarray(masks)
    if m.ndim != 2 or m.dtype != np.bool_:
        raise ValueError(f"masks must be bool[tasks, units], got {m.dtype}{list(m.shape)}")
    shared = m.astype(np.float64) @ m.T.astype(np.float64)
    counts = m.sum(axis=1).astype(np.float64)
    counts[counts == 0] = np.nan
    return shared / counts[None, :]


def mask_bytes(masks: ArrayLike) -> int:
    """Bytes of one task's mask at one bit a unit. ``masks``: bool[T, U]."""
    return -(-np.asarray(masks).shape[1] // 8)


def total_share(shares: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Share over all parts together, each counted by its size; 0 where all are empty.

    The plain mean of the shares would weigh a layer of ten weights like one of a million.

    Raises:
        ValueError: the two do not name the same parts.
    """
    if shares.keys() != sizes.keys():
        odd = ", ".join(sorted(shares.keys() ^ sizes.keys()))
        raise ValueError(f"shares and sizes must name the same parts, only one has {odd}")
    total = sum(sizes.values())
    return sum(shares[name] * sizes[name] for name in sizes) / total if total else 0.0


def all_metrics(
    matrix: ArrayLike,
    *,
    untrained: ArrayLike | None = None,
    chance: ArrayLike | None = None,
    joint: ArrayLike | None = None,
) -> dict[str, Metric]:
    """Every metric of this file by its short name; what is missing gives NaN and a reason."""
    return {
        "ACC": average_performance(matrix),
        "AIA": average_incremental(matrix),
        "BWT": backward_transfer(matrix),
        "FWT": forward_transfer(matrix, untrained),
        "F": forgetting(matrix),
        "AF": average_forgetting(matrix),
        "INT": intransigence(matrix, joint),
        "rho": forgetting_ratio(matrix, chance, joint),
    }


def _matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    m = np.asarray(matrix, dtype=np.float64)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or m.shape[0] == 0:
        raise ValueError(f"matrix must be square [T, T] with T >= 1, got shape {list(m.shape)}")
    return m


def _vector(values: ArrayLike, length: int, name: str) -> NDArray[np.float64]:
    v = np.asarray(values, dtype=np.float64)
    if v.shape != (length,):
        raise ValueError(f"{name} must have shape [{length}], got {list(v.shape)}")
    return v


def _lower(m: NDArray[np.float64]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(m)) for j in range(i + 1)]


def _known(m: NDArray[np.float64], needed: Sequence[tuple[int, int]]) -> Metric | None:
    """None if every needed entry was measured, else the undefined metric that names the first."""
    for i, j in needed:
        if math.isnan(m[i, j]):
            return Metric(math.nan, f"M[{i}, {j}] was not measured")
    return None


def _metric(value: float | np.floating[Any]) -> Metric:
    return Metric(float(value))
