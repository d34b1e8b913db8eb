"""A scenario: data cut into tasks, the test labels kept inside, predictions scored from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskcl.settings import Setting


class ScenarioError(ValueError):
    """A scenario that cannot be built; the message is one sentence for the person who asked."""


def length(dataset: Dataset) -> int:
    """Number of items; torch's Dataset declares no ``__len__``, map-style ones have it."""
    return len(dataset)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Task:
    """One task of a scenario.

    Attributes:
        classes: the original class ids of this task, in the order of the local labels.
        train: items (x float32, y int64 local label).
        inputs: the test set's items, x alone.
        labels: int64[N], the local labels of ``inputs``; only the scenario reads them.
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
        input_shape: shape of one x, such as (1, 28, 28).
        source: where the data came from, in words.
    """

    def __init__(
        self,
        name: str,
        setting: Setting,
        seed: int,
        tasks: Sequence[Task],
        input_shape: tuple[int, ...],
        source: str = "",
    ) -> None:
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
        self.name = name
        self.setting = setting
        self.seed = seed
        self.num_tasks = len(tasks)
        self.input_shape = tuple(input_shape)
        self.source = source
        self.classes = [list(task.classes) for task in tasks]
        self.sizes = [(length(task.train), length(task.inputs)) for task in tasks]
        self._tasks = list(tasks)

    @property
    def classes_per_task(self) -> list[int]:
        """Outputs that a model needs at each task.

        Task setting: the task's own classes. Domain: the classes that every domain shares.
        Class: all classes seen so far.
        """
        if self.setting.name != "class":
            return [len(classes) for classes in self.classes]
        seen: set[int] = set()
        counts = []
        for classes in self.classes:
            seen.update(classes)
            counts.append(len(seen))
        return counts

    def train_set(self, task: int) -> Dataset:
        """Training examples of a task: (x float32[input_shape], y int64 local label)."""
        return self._tasks[self._index(task)].train

    def test_inputs(self, task: int) -> Dataset:
        """Test examples of a task: x alone, in the order that ``score`` expects."""
        return self._tasks[self._index(task)].inputs

    def score(self, task: int, predictions: Tensor) -> float:
        """Share of the task's test examples predicted right, in [0, 1].

        Args:
            task: index of the task.
            predictions: integer[N], local labels in the order of ``test_inputs(task)``.

        Raises:
            ValueError: wrong number, shape or dtype.
        """
        labels = self._tasks[self._index(task)].labels
        if not isinstance(predictions, Tensor) or predictions.dtype not in _INTEGERS:
            found = getattr(predictions, "dtype", type(predictions).__name__)
            raise ValueError(f"score: predictions must be an integer tensor, got {found}")
        if predictions.shape != labels.shape:
            raise ValueError(
                f"score: task {task} has {len(labels)} test examples, predictions has shape "
                f"{tuple(predictions.shape)}"
            )
        return (predictions.cpu() == labels).sum().item() / len(labels)

    def describe(self) -> dict[str, Any]:
        """What a figure of this scenario means, ready for JSON."""
        return {
            "name": self.name,
            "setting": self.setting.name,
            "seed": self.seed,
            "source": self.source,
            "num_tasks": self.num_tasks,
            "classes": [list(classes) for classes in self.classes],
            "outputs": self.classes_per_task,
            "train_sizes": [train for train, _ in self.sizes],
            "test_sizes": [test for _, test in self.sizes],
            "input_shape": list(self.input_shape),
        }

    def __str__(self) -> str:
        return summary(self.describe())

    def _index(self, task: int) -> int:
        if not 0 <= task < self.num_tasks:
            raise IndexError(f"{self.name} has tasks 0 to {self.num_tasks - 1}, got {task}")
        return task


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def summary(description: dict[str, Any]) -> str:
    """One line for a person from ``Scenario.describe()``: printed beside every figure."""
    classes = [_span(part) for part in description["classes"]]
    if len(set(classes)) == 1:
        shown = classes[0] + (" each" if len(classes) > 1 else "")
    else:
        shown = " | ".join(classes if len(classes) <= 12 else [*classes[:10], "...", classes[-1]])
    tasks = "1 task" if len(classes) == 1 else f"{len(classes)} tasks"
    return (
        f"{description['name']}, {description['setting']} setting, seed {description['seed']}: "
        f"{tasks}, classes {shown}, "
        f"{_range(description['train_sizes'])} training and "
        f"{_range(description['test_sizes'])} test examples a task"
    )


def _span(classes: list[int]) -> str:
    """[0, 1, 2] as 0-2, [3, 7] as 3 7."""
    if len(classes) > 2 and classes == list(range(classes[0], classes[-1] + 1)):
        return f"{classes[0]}-{classes[-1]}"
    return " ".join(str(label) for label in classes)


def _range(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"{low} to {high}"
