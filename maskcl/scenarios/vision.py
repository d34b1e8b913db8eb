"""Cutting a set of images into tasks: by class (split) or by pixel order (permuted)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskcl.scenarios.base import Scenario, ScenarioError, Task
from maskcl.scenarios.class_order import check_equal_domains, class_groups
from maskcl.scenarios.labels import local_labels
from maskcl.scenarios.sources import Images
from maskcl.settings import Setting


def split(
    name: str,
    images: Images,
    setting: Setting,
    seed: int,
    num_tasks: int | None,
    *,
    shuffle: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
) -> Scenario:
    """Each task has its own classes, cut and ordered as `class_groups` says.

    Task setting: local labels 0..k-1 and a head for each task. Domain: the same local labels for
    every task (its first class is 0), so all tasks must have equally many. Class: the class ids.

    Raises:
        ScenarioError: more tasks than classes, one-class tasks, unequal domains, groups that are
            not of the classes.
    """
    labels = images.labels.unique().tolist()
    classes, order = class_groups(
        name, labels, setting, seed, tasks=num_tasks, shuffle=shuffle, groups=groups
    )
    check_equal_domains(name, setting, classes, len(labels))
    tables = local_labels(classes, setting)
    tasks = []
    for part, table in zip(classes, tables, strict=True):
        wanted = torch.isin(images.labels, torch.tensor(part))
        train = images.train[wanted[images.train]]
        test = images.test[wanted[images.test]]
        tasks.append(_task(images, part, table, train, test))
    detail: dict[str, Any] = {"order": order} if shuffle or groups is not None else {}
    return _scenario(name, setting, seed, tasks, images, detail)


def permuted(
    name: str,
    images: Images,
    setting: Setting,
    seed: int,
    num_tasks: int,
    *,
    shuffle: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
) -> Scenario:
    """Each task has every class and its own order of the pixels; task 0 keeps the image as it is.

    Domain setting: one set of classes. Task: the same local labels and a head for each task.
    Class: class c of task t is class 10 t + c.

    Raises:
        ScenarioError: shuffle or groups, as each task has all classes.
    """
    if shuffle or groups is not None:
        raise ScenarioError(f"{name}: every task has all classes: shuffle and groups cannot be")
    labels = images.labels.unique().tolist()
    step = max(labels) + 1
    offsets = [step * task if setting.name == "class" else 0 for task in range(num_tasks)]
    classes = [[label + offset for label in labels] for offset in offsets]
    tables = local_labels(classes, setting)
    pixels = int(np.prod(images.pixels.shape[2:]))
    tasks = []
    for index, (part, table) in enumerate(zip(classes, tables, strict=True)):
        local = {label: table[label + offsets[index]] for label in labels}
        order = None if index == 0 else permutation(seed, index, pixels)
        tasks.append(_task(images, part, local, images.train, images.test, order))
    return _scenario(name, setting, seed, tasks, images, {})


def permutation(seed: int, task: int, pixels: int) -> Tensor:
    """int64[pixels]: a function of (seed, task) alone, frozen with numpy's RandomState."""
    return torch.from_numpy(np.random.RandomState([seed, task]).permutation(pixels))


def _scenario(
    name: str,
    setting: Setting,
    seed: int,
    tasks: list[Task],
    images: Images,
    detail: dict[str, Any],
) -> Scenario:
    """Of tasks cut from one source; its detail has the classes' names, where they have any."""
    if images.names:
        detail = {**detail, "class_names": list(images.names)}
    return Scenario(name, setting, seed, tasks, images.shape, images.source, detail=detail)


def _task(
    images: Images,
    classes: list[int],
    table: dict[int, int],
    train: Tensor,
    test: Tensor,
    order: Tensor | None = None,
) -> Task:
    """A task of the given rows; ``table`` maps the source's labels to local ones."""
    lookup = torch.full((int(images.labels.max()) + 1,), -1, dtype=torch.int64)
    for label, local in table.items():
        if label < len(lookup):
            lookup[label] = local
    labels = lookup[images.labels]
    return Task(
        classes=classes,
        train=images.view(train, labels[train], order),
        inputs=images.view(test, None, order),
        labels=labels[test],
    )
