"""What a backbone learns before the tasks: images that are not the scenario's, labels the digit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from maskcl.scenarios import sources
from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.images import ImageSet
from maskcl.scenarios.sources import Images

HELD_OUT_SHARE = 0.1

SOURCES = ("rotated", "digits")


@dataclass(frozen=True)
class Pretraining:
    """Labelled images to train a backbone on, and others to see what it has learned.

    Attributes:
        source: one of ``SOURCES``.
        words: what the images are, for a person.
        train: items (x float32[input_shape], y int64).
        held_out: likewise; no image of it, turned or not, is in ``train``.
        classes: how many labels there are.
        input_shape: shape of one x, the scenario's.
    """

    source: str
    words: str
    train: Dataset
    held_out: Dataset
    classes: int
    input_shape: tuple[int, ...]


def rotated(name: str, images: Images, seed: int) -> Pretraining:
    """A scenario's own training images, each turned by 90, 180 and 270 degrees, never upright.

    The scenario's test images are not among them. A tenth of each class is held out by the seed.

    Raises:
        ScenarioError: the images are not square, or too few to hold some out.
    """
    _, height, width = images.shape
    if height != width:
        raise ScenarioError(f"{name}: to be turned, images must be square, found {height}x{width}")
    labels, classes = _positions(images.labels)
    train, held_out = sources.stratified_split(labels[images.train], HELD_OUT_SHARE, seed)
    if len(held_out) == 0:
        raise ScenarioError(
            f"{name}: {len(images.train)} training images are too few to hold out a tenth"
        )
    learned, measured = (Turned(images, images.train[rows], labels) for rows in (train, held_out))
    words = f"training images of {name} turned by 90, 180 or 270 degrees, never upright"
    return Pretraining("rotated", words, learned, measured, classes, images.shape)


def digits(size: tuple[int, int], seed: int) -> Pretraining:
    """scikit-learn's digits, resized from 8x8; a fifth of each class is held out by the seed.

    Args:
        size: (height, width) of the scenario's images.
        seed: of the split.
    """
    images = sources.digits(seed)
    pixels = F.interpolate(images.pixels, size=size, mode="bilinear", align_corners=False)
    labels, classes = _positions(images.labels)
    learned, measured = (
        ImageSet(pixels, images.full_scale, rows, labels[rows])
        for rows in (images.train, images.test)
    )
    words = f"scikit-learn's digits resized to {size[0]}x{size[1]}"
    return Pretraining("digits", words, learned, measured, classes, (1, *size))


class Turned(Dataset):
    """Three items for each row of some images: turned by 90, 180 and 270 degrees.

    Args:
        images: [N, C, S, S] with their full scale.
        rows: int64[n], which images.
        labels: int64[N], of all images.
    """

    def __init__(self, images: Images, rows: Tensor, labels: Tensor) -> None:
        size = images.shape[-1]
        upright = torch.arange(size * size).reshape(size, size)
        self._sets = [
            images.view(rows, labels[rows], torch.rot90(upright, turn).flatten())
            for turn in (1, 2, 3)
        ]

    def __len__(self) -> int:
        return 3 * len(self._sets[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        x, y = self.take(torch.tensor([index % len(self)]))
        return x[0], y[0]

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """A whole batch: x float32[B, C, S, S], y int64[B]."""
        rows, turns = indices // 3, indices % 3
        parts = [images.read(rows) for images in self._sets]
        x = torch.stack([x for x, _ in parts])
        return x[turns, torch.arange(len(indices))], parts[0][1]


def _positions(labels: Tensor) -> tuple[Tensor, int]:
    """Labels as positions in their own order, and how many there are."""
    found, positions = labels.unique(return_inverse=True)
    return positions, len(found)
