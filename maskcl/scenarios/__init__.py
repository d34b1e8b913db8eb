"""Sequences of tasks by name, from any list of datasets, or from any torch_geometric dataset.

``load("split-digits")`` and ``load("nodes-digits")`` need no download; the scenarios that
``reads_data`` names read files from a folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskcl.scenarios import pretraining, sources, vision
from maskcl.scenarios.base import Scenario, ScenarioError, Task
from maskcl.scenarios.datasets import find_setting, from_datasets
from maskcl.scenarios.describing import summary
from maskcl.scenarios.graphs.cut import Request
from maskcl.scenarios.graphs.names import GRAPHS, load_graph
from maskcl.scenarios.graphs.pyg import from_pyg
from maskcl.scenarios.pretraining import Pretraining
from maskcl.scenarios.sources import Images
from maskcl.settings import Setting

__all__ = [
    "NAMES",
    "Pretraining",
    "Scenario",
    "ScenarioError",
    "Task",
    "default_setting",
    "from_datasets",
    "from_pyg",
    "images_of",
    "load",
    "load_pretraining",
    "problem_of",
    "reads_data",
    "settings_of",
    "summary",
    "variants_of",
]

# name: (how it is cut, where the images come from, default number of tasks, default setting)
_TABLE = {
    "split-digits": (vision.split, "digits", 5, "task"),
    "permuted-digits": (vision.permuted, "digits", 10, "domain"),
    "split-mnist": (vision.split, "mnist", 5, "task"),
    "permuted-mnist": (vision.permuted, "mnist", 10, "domain"),
}

NAMES = (*_TABLE, *GRAPHS)

MAX_TASKS = 1000


def load(
    name: str,
    *,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    tasks: int | None = None,
    setting: str | Setting | None = None,
    padding: int = 0,
    normalise: tuple[float, float] | None = None,
    variant: str | None = None,
    metric: str | None = None,
    shuffle: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
) -> Scenario:
    """Build a scenario by name.

    Args:
        name: one of ``NAMES``.
        data: folder with the files that the scenario reads (``reads_data``), in the layout of
            torchvision's or torch_geometric's loaders; it is only read. Others take none.
        seed: fixes the split, every permutation, orders and negatives; 0 to 2**32 - 1.
        tasks: number of tasks; None for the scenario's own.
        setting: "task", "domain", "class" or "time", one of ``settings_of(name)``; None for its
            own (split: task, permuted: domain).
        padding: images: black pixels added on every side.
        normalise: images: (mean, std) of pixels between 0 and 1, frame included, to take out of
            each pixel; None leaves them between 0 and 1.
        variant: graphs: one of ``variants_of(name)``; None for the first.
        metric: graphs: "accuracy", "auroc" or "hits@K"; None for the scenario's own.
        shuffle: classes, or domains of graphs, in an order that the seed draws.
        groups: the classes of each task, instead of an even cut; classes in none are left out.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    if name not in NAMES:
        raise ScenarioError(f"unknown scenario {name!r}: known are {', '.join(NAMES)}")
    _check_seed(seed)
    own = default_setting(name)
    assert own is not None
    count = _TABLE[name][2] if tasks is None and name in _TABLE else tasks
    if count is not None and not 1 <= count <= MAX_TASKS:
        raise ScenarioError(f"the number of tasks must be 1 to {MAX_TASKS}, got {count}")
    wanted = own if setting is None else setting
    if name in GRAPHS:
        if padding or normalise is not None:
            raise ScenarioError(f"{name} is made of graphs: padding and normalise are for images")
        request = Request(name, wanted, seed, count, shuffle, groups, metric)
        return load_graph(request, None if data is None else Path(data), variant)
    if variant is not None or metric is not None:
        raise ScenarioError(f"{name} is made of images: variant and metric are for graphs")
    if groups is not None:
        count = tasks  # the groups say how many
    chosen = find_setting(wanted, settings_of(name), name)
    images = sources.prepared(_images(name, data, seed), padding, normalise)
    cut: Any = _TABLE[name][0]
    made: Scenario = cut(name, images, chosen, seed, count, shuffle=shuffle, groups=groups)
    return made


def default_setting(name: str) -> str | None:
    """The setting of a scenario where none is asked for; None where no scenario has the name."""
    if name in GRAPHS:
        return GRAPHS[name].default_setting
    return _TABLE[name][3] if name in _TABLE else None


def settings_of(name: str) -> tuple[str, ...]:
    """The settings that a scenario has."""
    return tuple(GRAPHS[name].tasks) if name in GRAPHS else ("task", "domain", "class")


def problem_of(name: str) -> str:
    """What a scenario is about: "vision", "node", "link" or "graph"."""
    return GRAPHS[name].problem if name in GRAPHS else "vision"


def reads_data(name: str) -> bool:
    """Whether a scenario is made of files in a folder, ``data``."""
    return GRAPHS[name].embedded is None if name in GRAPHS else images_of(name) == "mnist"


def variants_of(name: str) -> tuple[str, ...]:
    """What a scenario's files may be of; empty where there is no choice."""
    variants = GRAPHS[name].variants if name in GRAPHS else ()
    return variants if len(variants) > 1 else ()


def images_of(name: str) -> str | None:
    """Whose images a scenario is made of: "digits" or "mnist"; None where it is of graphs."""
    return _TABLE[name][1] if name in _TABLE else None


def load_pretraining(
    name: str,
    source: str | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Pretraining:
    """Images that a backbone for a scenario may learn from before the tasks; no test image is seen.

    Args:
        name: the scenario, one of ``NAMES``.
        source: ``rotated``, the scenario's own training images, turned; ``digits``, scikit-learn's,
            resized, for the MNIST scenarios; None for ``rotated``.
        data: folder with MNIST's idx files; with ``digits`` only their size is read, and without
            a folder it is 28x28.
        seed: fixes what is held out; of the digits scenarios the test images too, so that their
            runs must have the same seed.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    if name not in NAMES:
        raise ScenarioError(f"unknown scenario {name!r}: known are {', '.join(NAMES)}")
    if name in GRAPHS:
        raise ScenarioError(f"{name} is made of graphs: a backbone learns from images")
    chosen = pretraining.SOURCES[0] if source is None else source
    if chosen not in pretraining.SOURCES:
        known = ", ".join(pretraining.SOURCES)
        raise ScenarioError(f"unknown source {chosen!r}: known are {known}")
    _check_seed(seed)
    if chosen == "rotated":
        return pretraining.rotated(name, _images(name, data, seed), seed)
    if images_of(name) == "digits":
        raise ScenarioError(
            f"{name} is made of the digits themselves, test images included: its source is rotated"
        )
    size = (28, 28)
    if data is not None:
        height, width = _images(name, data, seed).pixels.shape[2:]
        size = (height, width)
    return pretraining.digits(size, seed)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ScenarioError(f"seed must be 0 to {2**32 - 1}, got {seed}")


def _images(name: str, data: str | os.PathLike[str] | None, seed: int) -> Images:
    if images_of(name) == "mnist":
        return sources.mnist(None if data is None else Path(data))
    if data is not None:
        raise ScenarioError(f"{name} comes with scikit-learn and reads no --data")
    return sources.digits(seed)
