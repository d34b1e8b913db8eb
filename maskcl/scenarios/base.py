"""A scenario: data cut into tasks, the test labels kept inside, predictions scored from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from maskcl.scenarios import multilabel_scores, scores, value_scores
from maskcl.scenarios.describing import summary
from maskcl.scenarios.target_values import without_classes_reasons
from maskcl.settings import Setting

PROBLEMS = ("vision", "node", "link", "graph")
# By kind of target, what scores predictions; the first of its metrics is the default.
SCORES: dict[str, Any] = {
    "classes": scores,
    "values": value_scores,
    "multilabel": multilabel_scores,
}


class ScenarioError(ValueError):
    """A scenario that cannot be built; the message is one sentence for the person who asked."""


def length(dataset: Dataset) -> int:
    """Number of items; torch's Dataset declares no ``__len__``, map-style ones have it."""
    return len(dataset)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task:
    """One task of a scenario.

    Attributes:
        classes: the original class ids of this task, in the order of the local labels. Of link
            prediction: 0, no link, and 1, a link. Of d values or d labels: 0 to d - 1.
        train: items (x float32, y int64 local label), or a NodeSet, LinkSet or GraphSet. Of d
            values y is floating [d], of d labels it is int64 [d] of 0 and 1.
        inputs: the test set's items, x alone, or a set without labels.
        labels: int64[N], the local labels of ``inputs`` ([N, d] values or labels, as y); only the
            scenario reads them.
    """

    classes: list[int]
    train: Dataset
    inputs: Dataset
    labels: Tensor


class Scenario:
    """A sequence of tasks under one setting.

    Training and prediction see ``train_set`` and ``test_inputs``; the only way from predictions
    to a figure is ``score``, which holds the labels.

    Args:
        name: printed with every figure.
        setting: where the task's identity and the labels come from (``maskcl.settings``).
        seed: what fixed the split or the permutations.
        tasks: at least one task; all share ``input_shape``.
        input_shape: shape of one x, such as (1, 28, 28); of graphs the features of a node, (64,).
        source: where the data came from, in words.
        problem: "vision", "node", "link" or "graph".
        metric: what ``score`` gives. Of classes "accuracy", of labels; or of scores of class 1
            "auroc" or "hits@K". Of values "r2", "explained_variance" or "pearson". Of multi-label
            targets "map", "f1" or "auroc". None: the first of its kind of target.
        outputs: those a model needs at each task; None for one a class. 1 is a logit whose sign
            tells two classes apart.
        prediction: link prediction: the training pairs are links and have no labels.
        detail: what else a figure depends on, in words and numbers: edges kept, split.
        targets: "classes"; "values", of regression; or "multilabel".

    Raises:
        ScenarioError: a task without examples, a metric that its test labels do not allow, the
            class setting without classes, tasks that share outputs and differ in their number.
    """

    def __init__(
        self,
        name: str,
        setting: Setting,
        seed: int,
        tasks: Sequence[Task],
        input_shape: tuple[int, ...],
        source: str = "",
        *,
        problem: str = "vision",
        metric: str | None = None,
        outputs: Sequence[int] | None = None,
        prediction: bool = False,
        detail: Mapping[str, Any] | None = None,
        targets: str = "classes",
    ) -> None:
        if problem not in PROBLEMS:
            raise ScenarioError(f"{name}: problem is {problem!r}, wanted {', '.join(PROBLEMS)}")
        if targets not in SCORES:
            raise ScenarioError(f"{name}: targets is {targets!r}, wanted {', '.join(SCORES)}")
        metric = SCORES[targets].DEFAULT if metric is None else metric
        if not tasks:
            raise ScenarioError(f"{name}: a scenario needs at least one task, got none")
        for index, task in enumerate(tasks):
            if length(task.train) == 0 or length(task.inputs) == 0:
                part = "training" if length(task.train) == 0 else "test"
                raise ScenarioError(f"{name}: task {index} has no {part} examples")
            if length(task.inputs) != len(task.labels):
                raise ScenarioError(
                    f"{name}: task {index} has {length(task.inputs)} test inputs but "
                    f"{len(task.labels)} test labels"
                )
        if targets != "classes":
            reason = without_classes_reasons(setting, targets, tasks)
            if reason is not None:
                raise ScenarioError(f"{name}: {reason}")
        for index, task in enumerate(tasks):
            reason = SCORES[targets].metric_reasons(metric, task.labels)
            if reason is not None:
                raise ScenarioError(f"{name}: task {index}: {reason}")
        if outputs is not None and len(outputs) != len(tasks):
            raise ScenarioError(f"{name}: {len(tasks)} tasks, but outputs of {len(outputs)}")
        self.name = name
        self.setting = setting
        self.seed = seed
        self.num_tasks = len(tasks)
        self.input_shape = tuple(input_shape)
        self.source = source
        self.problem = problem
        self.metric: str = metric
        self.targets = targets
        self.prediction = prediction
        self.detail = dict(detail or {})
        self._outputs = None if outputs is None else list(outputs)
        self.classes = [list(task.classes) for task in tasks]
        self.sizes = [(length(task.train), length(task.inputs)) for task in tasks]
        self._tasks = list(tasks)

    @property
    def classes_per_task(self) -> list[int]:
        """Classes that a prediction chooses among at each task; values or labels that it has.

        Task setting: the task's own. Domain, time: those that all tasks share. Class: all seen so
        far.
        """
        if self.setting.name != "class":
            return [len(classes) for classes in self.classes]
        seen: set[int] = set()
        counts = []
        for classes in self.classes:
            seen.update(classes)
            counts.append(len(seen))
        return counts

    @property
    def outputs(self) -> list[int]:
        """Outputs that a model needs at each task."""
        return self.classes_per_task if self._outputs is None else list(self._outputs)

    @property
    def head_sizes(self) -> list[int]:
        """Outputs of each task's head, where every task has one of its own."""
        return head_sizes(self.setting.name, self.outputs, self.classes)

    @property
    def chance(self) -> list[float]:
        """What guessing scores on each task."""
        counts = self.classes_per_task
        return [
            float(SCORES[self.targets].chance(self.metric, task.labels, count))
            for task, count in zip(self._tasks, counts, strict=True)
        ]

    def train_set(self, task: int) -> Dataset:
        """Training examples of a task: (x float32[input_shape], y int64 local label).

        Of a graph problem a NodeSet, LinkSet or GraphSet.
        """
        return self._tasks[self._index(task)].train

    def test_inputs(self, task: int) -> Dataset:
        """Test examples of a task: without labels, in the order that ``score`` expects."""
        return self._tasks[self._index(task)].inputs

    def score(self, task: int, predictions: Tensor) -> float:
        """The scenario's metric on a task's test examples, larger for better, at most 1.

        Accuracy: the share predicted right. AUROC: the share of (positive, negative) pairs in the
        right order. Hits@K: the share of positives above the K-th best negative. Those of values
        and of multi-label targets are in `value_scores` and `multilabel_scores`; the former may be
        below 0.

        Args:
            task: index of the task.
            predictions: [N] in the order of ``test_inputs(task)``: integer local labels for
                accuracy, else floating scores, larger for what is more likely of class 1. Floating
                [N, d], the outputs, for d values or labels.

        Raises:
            ValueError: wrong number, shape or dtype, or a score that is NaN.
        """
        labels = self._tasks[self._index(task)].labels
        return float(SCORES[self.targets].score(self.metric, task, predictions, labels))

    def describe(self) -> dict[str, Any]:
        """What a figure of this scenario means, ready for JSON."""
        return {
            "name": self.name,
            "setting": self.setting.name,
            "seed": self.seed,
            "source": self.source,
            "num_tasks": self.num_tasks,
            "classes": [list(classes) for classes in self.classes],
            "outputs": self.outputs,
            "train_sizes": [train for train, _ in self.sizes],
            "test_sizes": [test for _, test in self.sizes],
            "input_shape": list(self.input_shape),
            "problem": self.problem,
            "metric": self.metric,
            "prediction": self.prediction,
            "detail": dict(self.detail),
            # Descriptions of classes are as they always were.
            **({} if self.targets == "classes" else {"targets": self.targets}),
        }

    def __str__(self) -> str:
        return summary(self.describe())

    def _index(self, task: int) -> int:
        if not 0 <= task < self.num_tasks:
            raise IndexError(f"{self.name} has tasks 0 to {self.num_tasks - 1}, got {task}")
        return task


def head_sizes(setting: str, outputs: Sequence[int], classes: Sequence[Sequence[int]]) -> list[int]:
    """Outputs of each task's own head: in the class setting it has that task's classes alone.

    Args:
        setting: its name.
        outputs: of a scenario's model at each task.
        classes: of each task.
    """
    return [len(part) for part in classes] if setting == "class" else list(outputs)
