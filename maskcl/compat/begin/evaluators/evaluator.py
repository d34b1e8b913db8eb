"""BeGin's evaluators: a score for each task, and one over all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskcl.compat.begin.spelling import either_name
from maskcl.scenarios import scores


class BaseEvaluator:
    """Scores predictions task by task; extend it, and put it into ``scenarios.evaluator_map``.

    Args:
        num_tasks: T.
        task_ids: int64 [n], the task of each instance; T for those of none.
    """

    def __init__(self, num_tasks: int, task_ids: Tensor | None) -> None:
        self.num_tasks = num_tasks
        self._task_ids = task_ids

    @either_name
    def __call__(self, prediction: Tensor, answer: Tensor, indices: Tensor) -> Tensor:
        """Scores [T + 1], the last one over all instances of tasks; NaN where there are none.

        Args:
            prediction: one row an instance.
            answer: what is right, likewise.
            indices: int64, their places in ``task_ids``.
        """
        prediction = prediction.to(answer.device)
        tasks = self._tasks_of(indices).to(answer.device)
        found = torch.full((self.num_tasks + 1,), math.nan)
        members = [tasks == task for task in range(self.num_tasks)]
        for column, rows in enumerate([*members, tasks < self.num_tasks]):
            if bool(rows.any()):
                found[column] = self.simple_eval(prediction[rows], answer[rows])
        return found

    @either_name
    def simple_eval(self, prediction: Tensor, answer: Tensor) -> float:
        """The score of a batch, whatever its tasks."""
        raise NotImplementedError

    def _tasks_of(self, indices: Tensor) -> Tensor:
        assert self._task_ids is not None
        return self._task_ids[indices.to(self._task_ids.device)]


class AccuracyEvaluator(BaseEvaluator):
    """The share of predicted classes that are right."""

    @either_name
    def simple_eval(self, prediction: Tensor, answer: Tensor) -> float:
        """Of a batch of classes; NaN without any."""
        right = prediction.to(answer.device).reshape(-1) == answer.reshape(-1)
        return right.double().mean().item()


class MAEEvaluator(BaseEvaluator):
    """The mean of absolute errors."""

    @either_name
    def simple_eval(self, prediction: Tensor, answer: Tensor) -> float:
        """Of a batch of numbers; NaN without any."""
        off = prediction.to(answer.device).reshape(-1) - answer.reshape(-1)
        return off.abs().double().mean().item()


class ROCAUCEvaluator(BaseEvaluator):
    """The area under the ROC curve: the share of pairs of a one and a zero in the right order."""

    @either_name
    def simple_eval(self, prediction: Tensor, answer: Tensor) -> float:
        """The mean over questions [n, Q], or of one [n]; those of one class alone are left out."""
        prediction, answer = (t.detach().reshape(len(t), -1).cpu() for t in (prediction, answer))
        columns = zip(prediction.unbind(1), answer.long().unbind(1))
        known = [
            scores.auroc(scored, right)
            for scored, right in columns
            if scores.metric_reasons("auroc", right) is None
        ]
        return sum(known) / len(known) if known else math.nan


class HitsEvaluator(BaseEvaluator):
    """Hits@K: the share of links scored above the K-th best of the pairs that are none.

    Args:
        num_tasks: T.
        k: K.
    """

    def __init__(self, num_tasks: int, k: int) -> None:
        super().__init__(num_tasks, None)
        self.k = k

    @either_name
    def __call__(self, prediction: Tensor, answer: Tensor, task_ids: Tensor) -> Tensor:
        """Scores [T + 1]; with fewer than K pairs that are no links 1, NaN where there is no link.

        Args:
            prediction: [n] scores.
            answer: [n], 1 for a link and 0 for none.
            task_ids: int64 [n], the task of each link; of the others it is not read.
        """
        prediction, answer = prediction.reshape(-1).to(answer.device), answer.reshape(-1)
        above = self._above(prediction, answer)
        found = torch.full((self.num_tasks + 1,), math.nan)
        links, tasks = answer == 1, task_ids.to(answer.device)
        for column in range(self.num_tasks + 1):
            rows = links & (tasks == column) if column < self.num_tasks else links
            if bool(rows.any()):
                found[column] = above[rows].double().mean()
        return found

    @either_name
    def simple_eval(self, prediction: Tensor, answer: Tensor) -> float:
        """Of a batch [n] of scores; NaN without a link."""
        prediction, answer = prediction.reshape(-1).to(answer.device), answer.reshape(-1)
        return self._above(prediction, answer)[answer == 1].double().mean().item()

    def _above(self, prediction: Tensor, answer: Tensor) -> Tensor:
        """Which scores are above the K-th best of those that are no links."""
        others = prediction[answer == 0]
        if len(others) < self.k:
            return torch.ones_like(prediction, dtype=torch.bool)
        return prediction > others.topk(self.k).values[-1]
