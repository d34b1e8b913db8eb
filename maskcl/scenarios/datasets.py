"""A scenario from any list of (train, test) datasets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from maskcl.scenarios.base import SCORES, Scenario, ScenarioError, Task, length
from maskcl.scenarios.labels import local_labels
from maskcl.scenarios.targets import check_targets, check_widths
from maskcl.settings import Setting, get_setting


def from_datasets(
    tasks: Sequence[tuple[Dataset, Dataset]],
    *,
    setting: str | Setting = "task",
    name: str = "datasets",
    seed: int = 0,
    targets: str = "classes",
    metric: str | None = None,
) -> Scenario:
    """Make a scenario of map-style datasets whose items are (x tensor, y int).

    Labels may be any integers. Task setting: each task's labels are numbered on their own.
    Domain: the labels of all tasks together are the shared classes. Class: they are class ids.
    Labels are read once, now: from ``targets`` or a TensorDataset's second tensor where a dataset
    has one, else item by item.

    Args:
        tasks: a (train, test) pair of datasets for each task.
        setting: "task", "domain" or "class", or a ``maskcl.settings`` instance.
        name: printed with every figure.
        seed: recorded only; nothing is drawn here.
        targets: what y is: "classes"; "values", of `problems.Regression`, a number or [d] numbers;
            or "multilabel", of `problems.MultiLabel`, [L] times 0 or 1. The number of values or
            labels may differ between tasks in the task setting; the class setting needs classes.
        metric: how predictions are scored, see `Scenario`; None for accuracy, "r2" of values,
            "map" (mean average precision) of multi-label targets.

    Raises:
        ScenarioError: no tasks, an empty set, inputs of different shapes, a test label that the
            task's training set lacks (task setting), targets or a metric that are not as above.
    """
    chosen = find_setting(setting, ("task", "domain", "class"), name)
    if targets not in SCORES:
        raise ScenarioError(f"{name}: targets is {targets!r}, wanted {', '.join(SCORES)}")
    if not tasks:
        raise ScenarioError(f"{name}: a scenario needs at least one task, got none")
    shape = _input_shape(tasks, name)
    if targets != "classes":
        made = _without_classes(tasks, targets, name)
        return Scenario(
            name, chosen, seed, made, shape, "datasets given from Python",
            metric=metric, targets=targets,
        )  # fmt: skip
    labels = [(_labels(train), _labels(test)) for train, test in tasks]
    classes = [sorted(set(train.tolist())) for train, _ in labels]
    for index, (_, test) in enumerate(labels):
        unknown = sorted(set(test.tolist()) - set(classes[index]))
        if unknown:
            raise ScenarioError(
                f"{name}: task {index} has test label {unknown[0]}, which its training set lacks"
            )
    if chosen.name == "domain":
        union = sorted(set().union(*classes))
        classes = [union for _ in classes]
    tables = local_labels(classes, chosen)
    made = [
        Task(
            classes=part,
            train=_labelled(train, _apply(table, train_labels)),
            inputs=_inputs(test),
            labels=_apply(table, test_labels),
        )
        for (train, test), (train_labels, test_labels), part, table in zip(
            tasks, labels, classes, tables, strict=True
        )
    ]
    return Scenario(name, chosen, seed, made, shape, "datasets given from Python", metric=metric)


def _without_classes(
    tasks: Sequence[tuple[Dataset, Dataset]], targets: str, name: str
) -> list[Task]:
    """Tasks of values or of multi-label targets."""
    made = []
    for index, (train, test) in enumerate(tasks):
        where = f"{name}: task {index}'s"
        wanted = check_targets(_targets(train), targets, f"{where} training")
        labels = check_targets(_targets(test), targets, f"{where} test")
        check_widths(wanted, labels, where)
        columns = list(range(wanted.shape[1]))
        made.append(Task(columns, _labelled(train, wanted), _inputs(test), labels))
    return made


def find_setting(wanted: str | Setting, allowed: Iterable[str], name: str) -> Setting:
    """The setting of that name, if the scenario ``name`` has it."""
    label = wanted if isinstance(wanted, str) else wanted.name
    allowed = tuple(allowed)
    if label not in allowed:
        raise ScenarioError(f"{name} has the settings {', '.join(allowed)}, not {label!r}")
    return get_setting(wanted)


def _labelled(dataset: Dataset, labels: Tensor) -> Dataset:
    kind = _LabelledTensor if type(dataset) is TensorDataset else _Labelled
    return kind(dataset, labels)


def _inputs(dataset: Dataset) -> Dataset:
    return _InputTensor(dataset) if type(dataset) is TensorDataset else _Inputs(dataset)


class _Labelled(Dataset):
    """A dataset's inputs with the scenario's labels."""

    def __init__(self, dataset: Dataset, labels: Tensor) -> None:
        self._dataset = dataset
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._dataset[index][0], self.labels[index]


class _LabelledTensor(_Labelled):
    """The same where the inputs are one tensor: a batch is read at once."""

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [n, ...] and labels [n]."""
        return self._dataset.tensors[0][indices], self.labels[indices]  # type: ignore[attr-defined]


class _Inputs(Dataset):
    """A dataset's inputs without its labels."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return length(self._dataset)

    def __getitem__(self, index: int) -> Tensor:
        return self._dataset[index][0]


class _InputTensor(_Inputs):
    """The same where they are one tensor: a batch is read at once."""

    def take(self, indices: Tensor) -> Tensor:
        """Inputs [n, ...]."""
        return self._dataset.tensors[0][indices]  # type: ignore[attr-defined]


def _input_shape(tasks: Sequence[tuple[Dataset, Dataset]], name: str) -> tuple[int, ...]:
    shapes = {}
    for index, pair in enumerate(tasks):
        for part, dataset in zip(("training", "test"), pair, strict=True):
            if length(dataset) == 0:
                raise ScenarioError(f"{name}: task {index} has no {part} examples")
            x = dataset[0][0]
            if not isinstance(x, Tensor) or not x.is_floating_point():
                found = x.dtype if isinstance(x, Tensor) else type(x).__name__
                raise ScenarioError(
                    f"{name}: task {index}'s {part} inputs must be float tensors, got {found}"
                )
            shapes[tuple(x.shape)] = f"task {index}'s {part} set"
    if len(shapes) > 1:
        (first, where), (second, there) = list(shapes.items())[:2]
        raise ScenarioError(f"{name}: inputs have shape {first} in {where} and {second} in {there}")
    return next(iter(shapes))


def _labels(dataset: Dataset) -> Tensor:
    """int64[N]: the labels as the dataset's items give them."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].to(torch.int64).flatten().cpu()
    targets = getattr(dataset, "targets", None)
    plain = getattr(dataset, "target_transform", None) is None
    if targets is not None and plain and len(targets) == length(dataset):
        return torch.as_tensor(targets).to(torch.int64).flatten().cpu()
    return torch.tensor([int(dataset[index][1]) for index in range(length(dataset))])


def _targets(dataset: Dataset) -> Tensor:
    """[n, ...]: the targets as the dataset's items give them."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1]
    targets = getattr(dataset, "targets", None)
    plain = getattr(dataset, "target_transform", None) is None
    if targets is not None and plain and len(targets) == length(dataset):
        return torch.as_tensor(targets)
    return torch.stack([torch.as_tensor(dataset[i][1]) for i in range(length(dataset))])


def _apply(table: dict[int, int], labels: Tensor) -> Tensor:
    return torch.tensor([table[label] for label in labels.tolist()], dtype=torch.int64)
