"""Cutting nodes, links or graphs into tasks: by class, by domain or by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.class_order import ORDER, class_groups
from maskcl.scenarios.datasets import find_setting
from maskcl.scenarios.labels import local_labels
from maskcl.scenarios.sources import stratified_split
from maskcl.settings import Setting

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Items:
    """What is classified, row by row; rows that are in neither set only pass messages.

    Attributes:
        labels: int64[n], classes from 0.
        train: bool[n].
        test: bool[n]; no row is in both.
        domain: [n]; integers are domains, -1 for none; floating values are cut into as many as
            there are tasks. None where there is no such attribute.
        time: stamps, [n], integer or floating, or None.
    """

    labels: Tensor
    train: Tensor
    test: Tensor
    domain: Tensor | None = None
    time: Tensor | None = None


@dataclass(frozen=True)
class Request:
    """What is asked of a scenario.

    Attributes:
        name: of the scenario.
        setting: "task", "class", "domain", "time" or a Setting.
        seed: of the split, of orders and of negatives.
        tasks: how many; None for as many as the data say (`cut`).
        shuffle: classes or domains in an order that the seed draws, else in ascending order.
        groups: the classes of each task, instead of an even cut; classes in none are left out.
        metric: None for the scenario's own.
    """

    name: str
    setting: str | Setting = "task"
    seed: int = 0
    tasks: int | None = None
    shuffle: bool = False
    groups: Sequence[Sequence[int]] | None = None
    metric: str | None = None


@dataclass(frozen=True)
class Part:
    """One task's rows, ascending, and their local labels."""

    classes: list[int]
    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Cut:
    """Items cut into tasks.

    Attributes:
        setting: of the scenario.
        parts: one a task.
        window: int64[n], the task whose time an item's stamp is in; None in other settings.
        order: of the tasks, in words.
    """

    setting: Setting
    parts: list[Part]
    window: Tensor | None
    order: str


def cut(request: Request, items: Items) -> Cut:
    """Cut items by the request's setting.

    Task, class: each task has its own classes, in ascending order unless told otherwise; numbers
    of classes differ by at most one. Domain, time: each task has all classes, and the items of
    one domain or of one window of time. Windows hold about equally many items, and equal stamps
    share one. ``tasks`` None: two classes a task, a task for each domain or for each stamp.

    Raises:
        ScenarioError: the request does not go with the items.
    """
    allowed = ["task", "class"]
    allowed += [name for name in ("domain", "time") if getattr(items, name) is not None]
    setting = find_setting(request.setting, allowed, request.name)
    if request.tasks is not None and request.tasks < 1:
        raise ScenarioError(f"{request.name}: tasks is {request.tasks}, wanted at least 1")
    used = items.train | items.test
    known = items.labels[used].unique().tolist()
    if setting.name in ("task", "class"):
        groups, order = class_groups(
            request.name, known, setting, request.seed,
            tasks=request.tasks, shuffle=request.shuffle, groups=request.groups,
        )  # fmt: skip
        by_class = [torch.isin(items.labels, torch.tensor(group)) for group in groups]
        return Cut(setting, _parts(items, groups, by_class, setting), None, order)
    if request.groups is not None:
        raise ScenarioError(
            f"{request.name}: groups of classes belong to the task and class settings"
        )
    window: Tensor | None = None
    if setting.name == "time":
        assert items.time is not None
        if request.shuffle:
            raise ScenarioError(f"{request.name}: time has its own order: shuffle cannot be")
        window = windows(request, items.time, "stamps")
        members, order = window, "windows of time, oldest first"
    else:
        assert items.domain is not None
        members, order = _domains(request, items.domain)
    count = int(members.max()) + 1
    rows = [members == task for task in range(count)]
    return Cut(setting, _parts(items, [known] * count, rows, setting), window, order)


def split(
    labels: Tensor, seed: int, share: float = TEST_SHARE, used: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(train, test) as bool[n]: a share of each class for test, drawn by the seed.

    Args:
        labels: int64[n].
        seed: of the draw.
        share: of each class, 0 to 1.
        used: bool[n]: the rows to divide; None for all. Others are in neither set.
    """
    rows = torch.arange(len(labels)) if used is None else torch.nonzero(used).flatten()
    masks = []
    for part in stratified_split(labels[rows], share, seed):
        mask = torch.zeros(len(labels), dtype=torch.bool)
        mask[rows[part]] = True
        masks.append(mask)
    return masks[0], masks[1]


def windows(request: Request, values: Tensor, what: str) -> Tensor:
    """int64[n]: which of ``request.tasks`` windows a value is in; equal values share one.

    Raises:
        ScenarioError: there are fewer distinct values than windows, or so many equal ones that a
            window stays empty.
    """
    if values.is_floating_point() and not bool(values.isfinite().all()):
        raise ScenarioError(f"{request.name}: {what} must be finite numbers")
    distinct, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    tasks = len(distinct) if request.tasks is None else request.tasks
    before = counts.cumsum(0) - counts
    found = before * tasks // len(values) if tasks < len(distinct) else torch.arange(len(distinct))
    made = len(found.unique())
    if made < tasks:
        raise ScenarioError(f"{request.name}: the {what} make {made} windows, not {tasks}")
    return found[inverse]


def _domains(request: Request, domain: Tensor) -> tuple[Tensor, str]:
    """int64[n], the task of each item or -1; and the order in words."""
    if domain.is_floating_point():
        if request.tasks is None:
            raise ScenarioError(
                f"{request.name}: the domains are floating numbers: say how many tasks to cut"
            )
        members = windows(request, domain, "values of the domain")
    else:
        known = domain[domain >= 0].unique()
        if request.tasks not in (None, len(known)):
            raise ScenarioError(
                f"{request.name} has {len(known)} domains, which are {len(known)} tasks, "
                f"not {request.tasks}"
            )
        members = torch.where(domain >= 0, torch.searchsorted(known, domain.contiguous()), -1)
    if not request.shuffle:
        return members, "domains in ascending order"
    count = int(members.max()) + 1
    # order[task] is a domain; place[domain] its task, and place[-1] stays -1.
    order = np.random.RandomState([request.seed, ORDER]).permutation(count)
    place = torch.full((count + 1,), -1)
    place[torch.from_numpy(order)] = torch.arange(count)
    return place[members], f"domains in the seed's order {' '.join(map(str, order))}"


def _parts(
    items: Items, classes: list[list[int]], members: list[Tensor], setting: Setting
) -> list[Part]:
    parts = []
    for group, table, rows in zip(classes, local_labels(classes, setting), members, strict=True):
        lookup = torch.full((max(group) + 1,), -1)
        lookup[list(table)] = torch.tensor(list(table.values()))
        train, test = (torch.nonzero(rows & which).flatten() for which in (items.train, items.test))
        parts.append(
            Part(group, train, test, lookup[items.labels[train]], lookup[items.labels[test]])
        )
    return parts
