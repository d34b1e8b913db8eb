"""Sequences of tasks by name, or from any list of datasets.

``load("split-digits")`` needs no download; the MNIST scenarios read idx files from a folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from maskcl.scenarios import pretraining, sources, vision
from maskcl.scenarios.base import Scenario, ScenarioError, Task, summary
from maskcl.scenarios.datasets import find_setting, from_datasets
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
    "images_of",
    "load",
    "load_pretraining",
    "summary",
]

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
    padding: int = 0,
    normalise: tuple[float, float] | None = None,
) -> Scenario:
    """Build a scenario by name.

    Args:
        name: one of ``NAMES``.
        data: folder with MNIST's idx files; the digits scenarios take none.
        seed: fixes the digits' test split and every permutation; 0 to 2**32 - 1.
        tasks: number of tasks; None for the scenario's own.
        setting: "task", "domain" or "class"; None for the scenario's own (split: task,
            permuted: domain).
        padding: black pixels added on every side of each image.
        normalise: (mean, std) of pixels between 0 and 1, frame included, to take out of each
            pixel; None leaves them between 0 and 1.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    if name not in _TABLE:
        raise ScenarioError(f"unknown scenario {name!r}: known are {', '.join(NAMES)}")
    cut, _, default_tasks, default_setting = _TABLE[name]
    _check_seed(seed)
    count = default_tasks if tasks is None else tasks
    if not 1 <= count <= MAX_TASKS:
        raise ScenarioError(f"the number of tasks must be 1 to {MAX_TASKS}, got {count}")
    chosen = find_setting(
        default_setting if setting is None else setting, ("task", "domain", "class"), name
    )
    images = sources.prepared(_images(name, data, seed), padding, normalise)
    return cut(name, images, chosen, seed, count)


def default_setting(name: str) -> str | None:
    """The setting of a scenario where none is asked for; None where no scenario has the name."""
    return _TABLE[name][3] if name in _TABLE else None


def images_of(name: str) -> str:
    """Whose images a scenario is made of: "digits" or "mnist"."""
    return _TABLE[name][1]


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
    if name not in _TABLE:
        raise ScenarioError(f"unknown scenario {name!r}: known are {', '.join(NAMES)}")
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
