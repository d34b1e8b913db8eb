"""Which classes each task has: an even cut, in the seed's order, or as given."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from maskcl.scenarios.base import ScenarioError
from maskcl.settings import Setting

# What a seed draws besides the split: its streams must differ from [seed, class] and [seed, task].
ORDER, NEGATIVES = 2**31, 2**31 + 1


def class_groups(
    name: str,
    known: list[int],
    setting: Setting,
    seed: int,
    *,
    tasks: int | None = None,
    shuffle: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
) -> tuple[list[list[int]], str]:
    """The classes of each task, and their order in words.

    Args:
        name: of the scenario, for errors.
        known: all classes, in ascending order.
        setting: in all but "class" a task has two classes at least.
        seed: of the order that ``shuffle`` draws.
        tasks: into how many the classes are cut, whose sizes differ by at most one; None for two
            classes a task.
        shuffle: classes in an order that the seed draws, else in ascending order.
        groups: the classes of each task, instead of an even cut; classes in none are left out.

    Raises:
        ScenarioError: with one sentence, whatever cannot be.
    """
    if groups is not None:
        found = _given(name, known, groups, tasks, shuffle)
        left = sorted(set(known).difference(*found))
        order = "classes as given" + (f"; in no task {' '.join(map(str, left))}" if left else "")
    else:
        tasks = max(1, len(known) // 2) if tasks is None else tasks
        if isinstance(tasks, bool) or not isinstance(tasks, int) or tasks < 1:
            raise ScenarioError(f"{name}: tasks is {tasks!r}, wanted a whole number from 1 on")
        if tasks > len(known):
            raise ScenarioError(
                f"{name} has {len(known)} classes, which cannot be cut into {tasks} tasks"
            )
        ordered = np.array(known)
        order = "classes in ascending order"
        if shuffle:
            if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
                raise ScenarioError(f"{name}: seed is {seed!r}, wanted 0 to {2**32 - 1}")
            ordered = np.random.RandomState([seed, ORDER]).permutation(ordered)
            order = f"classes in the seed's order {' '.join(map(str, ordered))}"
        found = [part.tolist() for part in np.array_split(ordered, tasks)]
    if setting.name != "class" and min(map(len, found)) < 2:
        raise ScenarioError(
            f"{name}: {len(found)} tasks of {len(known)} classes leave a task with one class, "
            f"where nothing is learned: ask for at most {max(1, len(known) // 2)}"
        )
    return found, order


def check_equal_domains(
    name: str, setting: Setting, classes: Sequence[Sequence[int]], known: int
) -> None:
    """Raise ScenarioError where domains, which share their labels, differ in number of classes."""
    if setting.name == "domain" and len({len(part) for part in classes}) > 1:
        raise ScenarioError(
            f"{name}: the domain setting needs equally many classes in every task, "
            f"{known} classes do not divide into {len(classes)} tasks"
        )


def _given(
    name: str,
    known: list[int],
    groups: Sequence[Sequence[int]],
    tasks: int | None,
    shuffle: bool,
) -> list[list[int]]:
    try:
        found = [[operator.index(label) for label in group] for group in groups]
    except TypeError:
        raise ScenarioError(
            f"{name}: groups must be lists of classes, one a task, got {groups!r}"
        ) from None
    given = [label for group in found for label in group]
    if shuffle or tasks not in (None, len(found)):
        raise ScenarioError(
            f"{name}: groups fix the tasks and their order: give neither shuffle nor "
            "another number of tasks"
        )
    unknown = sorted(set(given) - set(known))
    if not found or not all(found) or unknown or len(set(given)) < len(given):
        raise ScenarioError(
            f"{name}: groups must name each class at most once, out of {known}, "
            f"at least one a task, got {found}"
        )
    return found
