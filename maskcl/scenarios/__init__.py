"""Sequences of tasks by name, from any list of datasets, or from any torch_geometric dataset.

``load("split-digits")`` and ``load("nodes-digits")`` need no files; the scenarios that
``reads_data`` names read them from a folder, and nothing is downloaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskcl.scenarios import image_names, pretraining
from maskcl.scenarios.base import Scenario, ScenarioError, Task
from maskcl.scenarios.datasets import find_setting, from_datasets, split_datasets
from maskcl.scenarios.describing import summary
from maskcl.scenarios.graphs.cut import Request
from maskcl.scenarios.graphs.names import GRAPHS, load_graph
from maskcl.scenarios.graphs.pyg import from_pyg
from maskcl.scenarios.image_names import IMAGES, Wanted
from maskcl.scenarios.images import Channels
from maskcl.scenarios.items import ItemError
from maskcl.scenarios.pretraining import Pretraining
from maskcl.settings import Setting

__all__ = [
    "NAMES",
    "ItemError",
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
    "split_datasets",
    "summary",
    "variants_of",
]

NAMES = (*IMAGES, *GRAPHS)

MAX_TASKS = 1000


def load(
    name: str,
    *,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    tasks: int | None = None,
    setting: str | Setting | None = None,
    padding: int = 0,
    normalise: tuple[Channels, Channels] | None = None,
    size: int | None = None,
    datasets: Sequence[str] | None = None,
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
            each pixel, numbers or one for each channel; (0, 1) leaves them between 0 and 1. None
            for the scenario's own: (0, 1) of digits and MNIST, of others the training images'.
        size: of ``images`` and ``sequence``: pixels of a side; None for the first image's, at most
            64, and 32.
        datasets: of ``sequence``: names of image sets, each a task.
        variant: graphs: one of ``variants_of(name)``; None for the first.
        metric: graphs: "accuracy", "auroc" or "hits@K"; None for the scenario's own.
        shuffle: classes, data sets, or domains of graphs, in an order that the seed draws.
        groups: the classes of each task, instead of an even cut; classes in none are left out.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    if name not in NAMES:
        raise ScenarioError(f"unknown scenario {name!r}: known are {', '.join(NAMES)}")
    _check_seed(seed)
    own = default_setting(name)
    assert own is not None
    if tasks is not None and not 1 <= tasks <= MAX_TASKS:
        raise ScenarioError(f"the number of tasks must be 1 to {MAX_TASKS}, got {tasks}")
    asked = own if setting is None else setting
    folder = None if data is None else Path(data)
    if name in GRAPHS:
        _check_graphs(name, padding, normalise, size, datasets)
        request = Request(name, asked, seed, tasks, shuffle, groups, metric)
        return load_graph(request, folder, variant)
    if variant is not None or metric is not None:
        raise ScenarioError(f"{name} is made of images: variant and metric are for graphs")
    return image_names.load_images(
        Wanted(name, folder, seed, size, datasets),
        find_setting(asked, settings_of(name), name),
        tasks,
        padding=padding,
        normalise=normalise,
        shuffle=shuffle,
        groups=groups,
    )


def default_setting(name: str) -> str | None:
    """The setting of a scenario where none is asked for; None where no scenario has the name."""
    if name in GRAPHS:
        return GRAPHS[name].default_setting
    return IMAGES[name].setting if name in IMAGES else None


def settings_of(name: str) -> tuple[str, ...]:
    """The settings that a scenario has."""
    return tuple(GRAPHS[name].tasks) if name in GRAPHS else image_names.SETTINGS


def problem_of(name: str) -> str:
    """What a scenario is about: "vision", "node", "link" or "graph"."""
    return GRAPHS[name].problem if name in GRAPHS else "vision"


def reads_data(name: str) -> bool:
    """Whether a scenario is made of files in a folder, ``data``."""
    if name in GRAPHS:
        return GRAPHS[name].embedded is None
    return name in IMAGES and IMAGES[name].reads_data


def variants_of(name: str) -> tuple[str, ...]:
    """What a scenario's files may be of; empty where there is no choice."""
    variants = GRAPHS[name].variants if name in GRAPHS else ()
    return variants if len(variants) > 1 else ()


def images_of(name: str) -> str | None:
    """Whose images a scenario is made of, such as "mnist"; None where they are a folder's.

    None too where there are several sets, and of graphs.
    """
    return IMAGES[name].source if name in IMAGES else None


def load_pretraining(
    name: str,
    source: str | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    seed: int = 0,
    size: int | None = None,
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
        size: as for ``load``.

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
    if name == "sequence":
        raise ScenarioError(
            "sequence is of several data sets: a base for it learns from one of the same size, such"
            " as split-cifar10, or is random"
        )
    wanted = Wanted(name, None if data is None else Path(data), seed, size)
    if chosen == "rotated":
        return pretraining.rotated(name, image_names.read_images(wanted), seed)
    if images_of(name) == "digits":
        raise ScenarioError(
            f"{name} is made of the digits themselves, test images included: its source is rotated"
        )
    if images_of(name) != "mnist":
        raise ScenarioError(f"the source digits is for the MNIST scenarios, not for {name}")
    height, width = (28, 28) if data is None else image_names.read_images(wanted).shape[1:]
    return pretraining.digits((height, width), seed)


def _check_graphs(name: str, padding: int, *of_images: Any) -> None:
    if padding or any(value is not None for value in of_images):
        raise ScenarioError(
            f"{name} is made of graphs: size, datasets, padding and normalise are for images"
        )


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise ScenarioError(f"seed must be 0 to {2**32 - 1}, got {seed}")
