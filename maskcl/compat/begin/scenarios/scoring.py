"""What a loader's metric is: one of maskcl's, or an evaluator of the user's own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.begin.evaluators.evaluator import (
    AccuracyEvaluator,
    BaseEvaluator,
    HitsEvaluator,
    ROCAUCEvaluator,
)
from maskcl.compat.begin.scenarios import evaluator_map
from maskcl.scenarios import Scenario, scores

# BeGin's evaluators whose figures maskcl's scenarios compute, and their names there.
_KNOWN: dict[Any, str] = {
    AccuracyEvaluator: "accuracy",
    ROCAUCEvaluator: "auroc",
    HitsEvaluator: "hits",
}
_OTHER_NAMES = {"aucroc": "rocauc", "auroc": "rocauc"}


@dataclass
class Scoring:
    """A metric.

    Attributes:
        known: maskcl's name of it; None for the scenario's own, or with an evaluator.
        evaluator: what `evaluator_map` has for it; None for the scenario's own.
        k: of "NAME@K".
        scenario: set once there is one.
    """

    known: str | None
    evaluator: Any
    k: int | None
    scenario: Scenario | None = None

    def of(self, preds: Tensor, labels: Tensor, task: int = 0) -> float:
        """maskcl's figure; NaN where it says nothing of these labels."""
        assert self.scenario is not None
        if scores.metric_reasons(self.scenario.metric, labels) is not None:
            return math.nan
        return scores.score(self.scenario.metric, task, preds, labels)

    def simple(self, preds: Tensor, answers: Tensor) -> float:
        """Of a batch, whatever its tasks."""
        if self.known is None and self.evaluator is not None:
            return self._made(1, torch.zeros(len(answers), dtype=torch.int64)).simple_eval(
                preds, answers
            )
        return self.of(preds.flatten().cpu(), answers.flatten().cpu())

    def all(
        self, preds: Tensor, places: dict[int, Tensor], answers: dict[int, Tensor], num_tasks: int
    ) -> Tensor:
        """Scores [T + 1] by the user's evaluator.

        Args:
            preds: one row a sample.
            places: int64, the rows of each task.
            answers: of each task, in the order of its places.
            num_tasks: T.
        """
        tasks = torch.full((len(preds),), num_tasks)
        first = next(iter(answers.values()))
        right = first.new_zeros(len(preds), *first.shape[1:])
        for task, rows in places.items():
            tasks[rows], right[rows] = task, answers[task]
        evaluator = self._made(num_tasks, tasks)
        third = torch.arange(len(preds)) if self.k is None else tasks
        return torch.as_tensor(evaluator(preds, right, third), dtype=torch.float32)

    def _made(self, num_tasks: int, tasks: Tensor) -> BaseEvaluator:
        return self.evaluator(num_tasks, tasks if self.k is None else self.k)


def scoring_of(owner: str, metric: str | None) -> Scoring:
    """What a loader's metric asks for.

    Args:
        owner: of messages.
        metric: "accuracy", "rocauc", "hits@K", another name in `evaluator_map`, or None.

    Raises:
        ValueError: there is no such metric.
    """
    if metric is None:
        return Scoring(None, None, None)
    name, _, k = _OTHER_NAMES.get(metric, metric).partition("@")
    evaluator = evaluator_map.get(name)
    if evaluator is None:
        names = ", ".join(evaluator_map)
        raise ValueError(f"{owner}: metric is {metric!r}, wanted one of {names} (hits as hits@K)")
    known = _KNOWN.get(evaluator)
    if known == "hits":
        known = f"hits@{k}"
    return Scoring(known, evaluator, int(k) if k.isdigit() else None)
