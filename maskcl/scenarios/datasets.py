"""A scenario from a list of (train, test) datasets, or from one such pair cut by class."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskcl.scenarios.base import SCORES, Scenario, ScenarioError, Task
from maskcl.scenarios.class_order import check_equal_domains, class_groups
from maskcl.scenarios.items import Given, items, look_at
from maskcl.scenarios.labels import local_labels
from maskcl.scenarios.stored_targets import whole_numbers
from maskcl.scenarios.targets import check_pair
from maskcl.settings import Setting, get_setting

SETTINGS = ("task", "domain", "class")
SOURCE = "datasets given from Python"


def from_datasets(
    tasks: Sequence[tuple[Dataset, Dataset]],
    *,
    setting: str | Setting = "task",
    name: str = "datasets",
    seed: int = 0,
    source: str = SOURCE,
    targets: str = "classes",
    metric: str | None = None,
) -> Scenario:
    """Make a scenario of map-style datasets whose items are (x float tensor, y).

    y is a whole number, the label, or what ``targets`` says. Labels may be any whole numbers,
    floats such as 2.0 among them. Task setting: each task's labels are numbered on their own.
    Domain: the labels of all tasks together are the shared classes. Class: they are class ids.

    Labels are read once, now, without the inputs: from ``targets``, ``labels`` or ``samples`` of a
    dataset, also below Subset, ConcatDataset and other wrappers, through ``target_transform``. Of
    each dataset item 0 is read: if its label is another, or a dataset holds none, all items are.
    An item that is read later, and has another label or shape, stops the run. Inputs in memory
    (TensorDataset, also in parts) must be finite; NaN in items that are read one by one is seen
    here in item 0, later by the loss.

    Args:
        tasks: a (train, test) pair of datasets for each task.
        setting: "task", "domain" or "class", or a ``maskcl.settings`` instance.
        name: printed with every figure.
        seed: recorded only; nothing is drawn here.
        source: where the data came from, in words.
        targets: "classes"; "values", of `problems.Regression`, y a number or [d] numbers; or
            "multilabel", of `problems.MultiLabel`, y [L] times 0 or 1. How many may differ between
            tasks in the task setting; the class setting needs classes.
        metric: how predictions are scored, see `Scenario`; None for accuracy, "r2" of values,
            "map" (mean average precision) of multi-label targets.

    Raises:
        ScenarioError: with one sentence, whatever is wrong: no pair of map-style datasets, an empty
            set, inputs that are not finite floats of one shape, a label that is no whole number, a
            test label that the task's training set lacks, one class where nothing is learned;
            targets or a metric that are not as above.
    """
    chosen = find_setting(setting, SETTINGS, name)
    if targets not in SCORES:
        raise ScenarioError(f"{name}: targets is {targets!r}, wanted {', '.join(SCORES)}")
    pairs = [
        (look_at(train, f"{name}: task {index}'s training set"),
         look_at(test, f"{name}: task {index}'s test set"))
        for index, (train, test) in enumerate(_pairs(tasks, name))
    ]  # fmt: skip
    shape = _one_shape([given for pair in pairs for given in pair], name)
    if targets == "classes":
        made = _of_classes(pairs, chosen, name)
    else:
        made = [_without_classes(train, test, targets) for train, test in pairs]
    return Scenario(name, chosen, seed, made, shape, source, metric=metric, targets=targets)


def _without_classes(train: Given, test: Given, targets: str) -> Task:
    """A task of values or of multi-label targets."""
    wanted, scored = check_pair(train, test, targets)
    columns = list(range(wanted.shape[1]))
    return Task(columns, items(train, targets=wanted), items(test), scored)


def _of_classes(pairs: Sequence[tuple[Given, Given]], chosen: Setting, name: str) -> list[Task]:
    labels = [(_labels(train), _labels(test)) for train, test in pairs]
    classes = [train.unique().tolist() for train, _ in labels]
    for index, (_, test) in enumerate(labels):
        _check_known(f"{name}: task {index}", test, classes[index])
    union = sorted(set().union(*classes))
    alone = [index for index, part in enumerate(classes) if len(part) == 1]
    if len(union) == 1 or (chosen.name == "task" and alone):
        where = f"task {alone[0]}" if len(classes) > 1 and len(union) > 1 else "the training set"
        raise ScenarioError(
            f"{name}: {where} has the class {classes[alone[0]][0]} alone, where nothing is learned:"
            " wanted two at least"
        )
    if chosen.name == "domain":
        classes = [union for _ in classes]
    tables = local_labels(classes, chosen)
    return [
        Task(
            classes=part,
            train=items(train, targets=_local(train_labels, table)),
            inputs=items(test),
            labels=_local(test_labels, table),
        )
        for (train, test), (train_labels, test_labels), part, table in zip(
            pairs, labels, classes, tables, strict=True
        )
    ]


def split_datasets(
    train: Dataset,
    test: Dataset,
    *,
    tasks: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    shuffle: bool = False,
    setting: str | Setting = "task",
    name: str = "datasets",
    seed: int = 0,
    source: str = SOURCE,
) -> Scenario:
    """Cut one (train, test) pair of datasets, such as two ImageFolders, into tasks by class.

    Tasks see the datasets through indices, and nothing is copied. Items and labels are as
    `from_datasets` says. Task setting: labels inside a task are its classes' places. Domain: the
    same, so that all tasks must have equally many. Class: the class ids.

    Args:
        train: training items (x, y) of all classes.
        test: test items, of no other classes.
        tasks: how many; their numbers of classes differ by at most one. None for two classes each.
        groups: the classes of each task, instead of an even cut; classes in none are left out.
        shuffle: classes in an order that the seed draws, else in ascending order.
        setting: "task", "domain" or "class", or a ``maskcl.settings`` instance.
        name: printed with every figure.
        seed: of the order that ``shuffle`` draws.
        source: where the data came from, in words.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    chosen = find_setting(setting, SETTINGS, name)
    given = [look_at(train, f"{name}: the training set"), look_at(test, f"{name}: the test set")]
    shape = _one_shape(given, name)
    train_labels, test_labels = map(_labels, given)
    known = train_labels.unique().tolist()
    _check_known(name, test_labels, known)
    if len(known) == 1:
        raise ScenarioError(f"{name}: the training set has the class {known[0]} alone")
    classes, order = class_groups(
        name, known, chosen, seed, tasks=tasks, shuffle=shuffle, groups=groups
    )
    check_equal_domains(name, chosen, classes, len(known))
    made = []
    for part, table in zip(classes, local_labels(classes, chosen), strict=True):
        rows, test_rows = (_rows(labels, part) for labels in (train_labels, test_labels))
        made.append(
            Task(
                classes=part,
                train=items(given[0], rows, _local(train_labels[rows], table)),
                inputs=items(given[1], test_rows),
                labels=_local(test_labels[test_rows], table),
            )
        )
    detail = {"order": order} if shuffle or groups is not None else None
    return Scenario(name, chosen, seed, made, shape, source, detail=detail)


def find_setting(wanted: str | Setting, allowed: Iterable[str], name: str) -> Setting:
    """The setting of that name, if the scenario ``name`` has it."""
    label = wanted if isinstance(wanted, str) else wanted.name
    allowed = tuple(allowed)
    if label not in allowed:
        raise ScenarioError(f"{name} has the settings {', '.join(allowed)}, not {label!r}")
    return get_setting(wanted)


def _pairs(tasks: Any, name: str) -> list[Any]:
    """The tasks, if each is a pair."""
    wanted = "wanted a list with a (train, test) pair of datasets for each task"
    if isinstance(tasks, (Dataset, Tensor, str, dict)) or not isinstance(tasks, Iterable):
        raise ScenarioError(f"{name}: tasks is of type {type(tasks).__name__}, {wanted}")
    found = list(tasks)
    if not found:
        raise ScenarioError(f"{name}: a scenario needs at least one task, got none")
    for index, pair in enumerate(found):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            several = isinstance(pair, (tuple, list))
            shown = f"{len(pair)} things" if several else f"one {type(pair).__name__}"
            raise ScenarioError(f"{name}: task {index} is {shown}, {wanted}")
    return found


def _one_shape(given: Sequence[Given], name: str) -> tuple[int, ...]:
    first = given[0]
    for other in given:
        where, there = (part.where.removeprefix(f"{name}: ") for part in (first, other))
        if other.shape != first.shape:
            raise ScenarioError(
                f"{name}: inputs have shape {first.shape} in {where} and {other.shape} in {there}"
            )
        if other.dtype != first.dtype:
            raise ScenarioError(
                f"{name}: inputs are {first.dtype} in {where} and {other.dtype} in {there}"
            )
    return first.shape


def _labels(given: Given) -> Tensor:
    return whole_numbers(given.targets, given.where)


def _check_known(where: str, test: Tensor, classes: list[int]) -> None:
    unknown = sorted(set(test.unique().tolist()) - set(classes))
    if unknown:
        raise ScenarioError(f"{where} has test label {unknown[0]}, which its training set lacks")


def _rows(labels: Tensor, classes: list[int]) -> Tensor:
    """int64 [n]: the items of these classes."""
    return torch.isin(labels, torch.tensor(classes)).nonzero().flatten()


def _local(labels: Tensor, table: dict[int, int]) -> Tensor:
    return torch.tensor([table[label] for label in labels.tolist()], dtype=torch.int64)
