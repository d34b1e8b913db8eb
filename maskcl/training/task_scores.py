"""Rows of the matrix of scores: which task is active, told or inferred, and what is not scored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from maskcl.methods import TaskData
from maskcl.problems import Problem
from maskcl.training.evaluation import score_task
from maskcl.training.inference_scores import InferenceScores
from maskcl.training.inferring import InferredScores
from maskcl.training.samples import Samples

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios.base import Scenario


class TaskScores:
    """Scores of a network on a scenario's test data.

    Args:
        net: the network.
        problem: makes batches and predictions.
        scenario: scores them.
        fabric: for device and precision.
        samples: of training, which inference may measure.
        later: whether the method can say something of tasks that were not trained.
        evaluate: which rows are whole: ``all``; ``last``, of the last task; every Nth and the last.
            The others have what was trained last alone.
        is_inferred: nobody tells the task of a sample.

    Attributes:
        first: the network's task that the scenario's task 0 is.
        latest: the scenario's task that was begun last; None where none was.
    """

    def __init__(
        self,
        net: TaskNetwork,
        problem: Problem,
        scenario: Scenario,
        fabric: Fabric,
        samples: Samples,
        later: bool,
        evaluate: str | int = "all",
        *,
        is_inferred: bool,
    ) -> None:
        self.net, self.problem, self.scenario, self.fabric = net, problem, scenario, fabric
        self.first = 0
        self.latest: int | None = None
        self.evaluate = evaluate
        self._later = scenario.setting.later_tasks_defined and later
        self._samples = samples
        self._inferred: InferredScores | None = None
        if is_inferred:
            self._inferred = InferredScores(net, problem, scenario, fabric, samples, self._data)

    def start(self) -> InferenceScores | None:
        """Once ``first`` is known: what inferred scores go into; None where tasks are told.

        Raises:
            ValueError: see ``InferredScores.start``.
        """
        if self._inferred is None:
            return None
        self._inferred.start(self.first)
        return InferenceScores.empty(self.scenario.num_tasks)

    def finished(self) -> list[bool]:
        """For each task of the scenario, whether it is finished."""
        found: list[bool] = self.net.finished.tolist()
        return found[self.first : self.first + self.scenario.num_tasks]

    def row(self, trained: int, into: InferenceScores | None = None) -> list[float]:
        """Scores on all tasks after one: NaN where a score on them would say nothing.

        NaN too where it was not asked for.

        Args:
            trained: the task trained last, -1 for none.
            into: gets what else is measured.
        """
        is_whole = self._is_whole(trained)
        return [
            self.of(task, trained, into)
            if (is_whole or task == trained) and (task <= trained or is_done or self._later)
            else math.nan
            for task, is_done in enumerate(self.finished())
        ]

    def _is_whole(self, trained: int) -> bool:
        """Whether all tasks are scored after one, as they are before the first and at the end."""
        if trained in (-1, self.scenario.num_tasks - 1) or self.evaluate == "all":
            return True
        return isinstance(self.evaluate, int) and (trained + 1) % self.evaluate == 0

    def of(self, task: int, trained: int = 0, into: InferenceScores | None = None) -> float:
        """Score on one task."""
        if self._inferred is not None and bool(self.net.finished.any()):
            blank = InferenceScores.empty(self.scenario.num_tasks)
            return self._inferred.score(max(trained, 0), task, blank if into is None else into)
        seen = task if self.scenario.setting.task_id_at_test else self._active()
        return score_task(
            self.net, self.problem, self.scenario, self.fabric, task,
            active=self.first + seen, batch_size=self._samples.batch_size,
            labels=self._samples.labels, loader=self._samples.loader,
        )  # fmt: skip

    def _active(self) -> int:
        """The latest task: the one begun last here, else the last one finished, else the first."""
        if self.latest is not None:
            return self.latest
        finished = [task for task, is_done in enumerate(self.finished()) if is_done]
        return finished[-1] if finished else 0

    def _data(self, task: int) -> TaskData:
        return self._samples.task_data(task, self.scenario.train_set(task))
