"""A sequence of data sets, each a task, brought to one size and to colour (Serra et al. 2018)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.scenarios.base import Scenario, ScenarioError, Task
from maskcl.scenarios.class_order import ORDER
from maskcl.scenarios.labels import local_labels
from maskcl.scenarios.sources import Images, prepared
from maskcl.settings import Setting

SIZE = 32
# As many black pixels a side at most; images that lack more are scaled.
WIDEST_FRAME = 2


def order_of(
    known: Sequence[str],
    datasets: Sequence[str] | None,
    seed: int,
    tasks: int | None,
    shuffle: bool,
) -> list[str]:
    """The data sets of a sequence in the order of the tasks.

    Args:
        known: all that there are.
        datasets: as asked for.
        seed: of the order that ``shuffle`` draws.
        tasks: how many of them, from the first; None for all.
        shuffle: in an order that the seed draws.

    Raises:
        ScenarioError: none is asked for, one is unknown or named twice, or there are fewer.
    """
    if not datasets:
        raise ScenarioError(f"sequence: name the data sets, out of {', '.join(known)}")
    for name in datasets:
        if name not in known:
            raise ScenarioError(
                f"sequence: unknown data set {name!r}: known are {', '.join(known)}"
            )
        if list(datasets).count(name) > 1:
            raise ScenarioError(f"sequence: the data set {name} is named twice")
    if tasks is not None and tasks > len(datasets):
        raise ScenarioError(
            f"sequence has {len(datasets)} data sets, which cannot be {tasks} tasks"
        )
    order = range(len(datasets))
    chosen = np.random.RandomState([seed, ORDER]).permutation(order) if shuffle else order
    return [datasets[index] for index in chosen][:tasks]


def sequence(sets: dict[str, Images], setting: Setting, seed: int) -> Scenario:
    """A task of each set, with all its classes.

    Args:
        sets: images of one shape, by name, in order.
        setting: task: a head for each set. Domain: they share the labels 0, 1, ..., so that all
            need equally many classes. Class: the classes are numbered through.
        seed: recorded.

    Raises:
        ScenarioError: unequal domains.
    """
    counts = {name: int(images.labels.max()) + 1 for name, images in sets.items()}
    if setting.name == "domain" and len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ScenarioError(
            f"sequence: the domain setting needs equally many classes in every task, found {found}"
        )
    offset, classes = 0, []
    for count in counts.values():
        classes.append(list(range(offset, offset + count)))
        offset += count if setting.name == "class" else 0
    tables = local_labels(classes, setting)
    tasks = []
    for images, part, table in zip(sets.values(), classes, tables, strict=True):
        labels = torch.tensor([table[label] for label in part])[images.labels]
        train, test = images.train, images.test
        tasks.append(Task(part, images.view(train, labels[train]), images.view(test), labels[test]))
    source = "; ".join(f"{name}: {images.source}" for name, images in sets.items())
    shape = next(iter(sets.values())).shape
    detail = {"datasets": list(sets)}
    return Scenario("sequence", setting, seed, tasks, shape, source, detail=detail)


def brought_to(images: Images, size: int) -> Images:
    """The same as square images of that size.

    A frame of at most ``WIDEST_FRAME`` black pixels where that does (28x28 to 32x32), else scaled.
    """
    height, width = images.shape[1:]
    missing = size - height
    if height == width and missing % 2 == 0 and 0 < missing <= 2 * WIDEST_FRAME:
        images = prepared(images, missing // 2)
    elif (height, width) != (size, size):
        scaled = torch.cat([_scaled(part, size) for part in _tensor(images).split(4096)])
        words = f"{images.source}, scaled to {size}x{size}"
        images = dataclasses.replace(images, pixels=scaled, source=words)
    return images


def coloured(images: Images) -> Images:
    """The same with three channels: a view, grey images are in memory once."""
    return dataclasses.replace(images, pixels=_tensor(images).expand(-1, 3, -1, -1))


def _tensor(images: Images) -> Tensor:
    assert isinstance(images.pixels, Tensor)  # named sources are in memory
    return images.pixels


def _scaled(pixels: Tensor, size: int) -> Tensor:
    shape = (size, size)
    return F.interpolate(pixels, shape, mode="bilinear", align_corners=False, antialias=True)
