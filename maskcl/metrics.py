"""Metrics of a sequence of tasks, from its accuracy matrix.

``M[i, j]`` is the score on task j after training task i: rows are time, the last row is the final
model. A score is an accuracy, or what else the scenario measures, larger for better (AUROC, R2,
which may be below 0): one kind in one matrix. Entries that were not measured are NaN; with one head
a task, all above the diagonal.
A metric that is undefined is NaN with a reason, never 0.

AP, AF, INT and FWT are BeGin's as its code computes them. Its documents divide AF's sum, and
FWT's, of T - 1 terms by T, and give AF the opposite sign.

Every function leaves its arguments as they are. Those that take ``M`` raise ValueError unless it
is a square matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
NO_JOINT = "no joint training to compare with: --references trains it"
NO_SCRATCH = "no training from scratch to compare with: --references trains it"
NOT_BEFORE = "tasks were not scored before they were trained: a head or mask of theirs was missing"


def average_performance(matrix: ArrayLike) -> Metric:
    """ACC, BeGin's AP: mean over all T tasks j of M[T-1, j] (Lopez-Paz and Ranzato 2017, eq. 2)."""
    m = _matrix(matrix)
    return _known(m, [(len(m) - 1, j) for j in range(len(m))]) or _metric(m[-1].mean())


def average_incremental(matrix: ArrayLike) -> Metric:
    """AIA: mean over i of the mean over j <= i of M[i, j] (Rebuffi et al. 2017)."""
    m = _matrix(matrix)
    return _known(m, _lower(m)) or _metric(np.mean([m[i, : i + 1].mean() for i in range(len(m))]))


def backward_transfer(matrix: ArrayLike) -> Metric:
    """BWT: mean over the T-1 tasks j < T-1 of M[T-1, j] - M[j, j]; negative is forgetting.

    Lopez-Paz and Ranzato 2017, eq. 3.
    """
    m = _matrix(matrix)
    last = len(m) - 1
    if last == 0:
        return Metric(math.nan, ONE_TASK)
    needed = [(j, j) for j in range(last)] + [(last, j) for j in range(last)]
    return _known(m, needed) or _metric(np.mean(m[last, :last] - m.diagonal()[:last]))


def forward_transfer(matrix: ArrayLike, untrained: ArrayLike | None) -> Metric:
    """FWT: mean over the T-1 tasks j >= 1 of M[j-1, j] - b_j; positive is a head start.

    Lopez-Paz and Ranzato 2017, eq. 4. BeGin prints it in the domain setting.

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
        return _known(m, _lower(m)) or Metric(math.nan, NOT_BEFORE)
    if np.isnan(before[1:]).any():
        return Metric(math.nan, "the untrained model was not scored on every task")
    return _metric(np.mean([m[j - 1, j] - before[j] for j in range(1, len(m))]))


def transfer_from_scratch(matrix: ArrayLike, scratch: ArrayLike | None) -> Metric:
    """FTS: mean over the T-1 tasks j >= 1 of M[j, j] - scratch_j; positive is a gain.

    Defined where FWT is not, with a head for each task. Wolczyk et al. 2021 (Continual World)
    compare with training from scratch too, but areas under the curves of training, and divide by
    1 minus the reference's; here they are the scores at the end of training, and nothing divides.

    Args:
        matrix: M.
        scratch: [T], the score on task j of a fresh plain network trained on task j alone; None if
            there is none.
    """
    m = _matrix(matrix)
    if len(m) == 1:
        return Metric(math.nan, ONE_TASK)
    if scratch is None:
        return Metric(math.nan, NO_SCRATCH)
    reference = _vector(scratch, len(m), "scratch")
    if np.isnan(reference[1:]).any():
        return Metric(math.nan, "training from scratch was not scored on every task")
    unknown = _known(m, [(j, j) for j in range(1, len(m))])
    return unknown or _metric(np.mean(m.diagonal()[1:] - reference[1:]))


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
    """AF, BeGin's: mean over the T-1 tasks j < T-1 of M[j, j] - M[T-1, j]; positive is forgetting.

    It is -BWT.
    """
    backward = backward_transfer(matrix)
    return Metric(-backward.value + 0.0, backward.reason)


def intransigence(matrix: ArrayLike, joint: ArrayLike | None) -> Metric:
    """INT: mean over all T tasks j of joint_j - M[j, j]; positive is what was not learned.

    Chaudhry et al. 2018 (Riemannian Walk), Intransigence measure; BeGin's.

    Args:
        matrix: M.
        joint: [T], score on task j of a model trained on tasks 0 to j together; None if there is
            none.
    """
    m = _matrix(matrix)
    if joint is None:
        return Metric(math.nan, NO_JOINT)
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
        joint: [T], J_j, score on task j of a model trained on all T tasks together; None if there
            is none.
    """
    m = _matrix(matrix)
    if joint is None:
        return Metric(math.nan, NO_JOINT)
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


def all_metrics(
    matrix: ArrayLike,
    *,
    untrained: ArrayLike | None = None,
    chance: ArrayLike | None = None,
    joint: ArrayLike | None = None,
    joint_last: ArrayLike | None = None,
    scratch: ArrayLike | None = None,
) -> dict[str, Metric]:
    """Every metric of this file by its short name; what is missing gives NaN and a reason.

    Args:
        matrix: M.
        untrained: [T], of `forward_transfer`.
        chance: [T], of `forgetting_ratio`.
        joint: [T], of `intransigence`.
        joint_last: [T], the joint training that `forgetting_ratio` takes.
        scratch: [T], of `transfer_from_scratch`.
    """
    return {
        "ACC": average_performance(matrix),
        "AIA": average_incremental(matrix),
        "BWT": backward_transfer(matrix),
        "FWT": forward_transfer(matrix, untrained),
        "FTS": transfer_from_scratch(matrix, scratch),
        "F": forgetting(matrix),
        "AF": average_forgetting(matrix),
        "INT": intransigence(matrix, joint),
        "rho": forgetting_ratio(matrix, chance, joint_last),
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
