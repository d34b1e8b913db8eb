"""Sequences of tasks by name, or from any list of datasets.

``load("split-digits")`` needs no download; the MNIST scenarios read idx files from a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from maskcl.scenarios import sources, vision
from maskcl.scenarios.base import Scenario, ScenarioError, Task, summary
from maskcl.scenarios.datasets import find_setting, from_datasets
from maskcl.settings import Setting

__all__ = ["NAMES", "Scenario", "ScenarioError", "Task", "from_datasets", "load", "summary"]

# name: (how it is cut, where the images come from, default number of tasks, default setting)
_TABLE = {
    "split-digits": (vision.split, "digits", 5, "task"),
    "permuted-digits": (vision.permuted, "digits", 10, "domain"),
    "split-mnist": (vision.split, "mnist", 5, "task"),
    "permuted-mnist": (vision.permuted, "mnist", 10, "domain"),
}

NAMES = tuple(_TABLE)

MAX_TASKS = 1000


def load(
    name: str,
    *,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    tasks: int | None = None,
    setting: str | Setting | None = None,
) -> Scenario:
    """Build a scenario by name.

    Args:
        name: one of ``NAMES``.
        data: folder with MNIST's idx files; the digits scenarios take none.
        seed: fixes the digits' test split and every permutation; 0 to 2**32 - 1.
        tasks: number of tasks; None for the scenario's own.
        setting: "task", "domain" or "class"; None for the scenario's own (split: task,
            permuted: domain).

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    if name not in _TABLE:
        raise ScenarioError(f"unknown scenario {name!r}: known are {', '.join(NAMES)}")
    cut, source, default_tasks, default_setting = _TABLE[name]
    if not 0 <= seed < 2**32:
        raise ScenarioError(f"seed must be 0 to {2**32 - 1}, got {seed}")
    count = default_tasks if tasks is None else tasks
    if not 1 <= count <= MAX_TASKS:
        raise ScenarioError(f"the number of tasks must be 1 to {MAX_TASKS}, got {count}")
    chosen = find_setting(
        default_setting if setting is None else setting, ("task", "domain", "class"), name
    )
    if source == "digits" and data is not None:
        raise ScenarioError(f"{name} comes with scikit-learn and reads no --data")
    if source == "digits":
        images = sources.digits(seed)
    else:
        images = sources.mnist(None if data is None else Path(data))
    return cut(name, images, chosen, seed, count)
