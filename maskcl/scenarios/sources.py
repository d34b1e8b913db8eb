"""Images that are already split, whatever they come from; scikit-learn's digits."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.extras import install
from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.images import Channels, ImageItems, ImageSet

TEST_SHARE = 0.2
# Training images that the statistics of files are taken from, which are decoded for it.
SAMPLED = 2000


@dataclass(frozen=True)
class Images:
    """All images of a source, already split.

    Attributes:
        pixels: [N, C, H, W], as read: a tensor, or other `Pixels`.
        labels: int64[N].
        train: int64 rows of the training set.
        test: int64 rows of the test set.
        full_scale: pixel value that becomes 1.0.
        source: in words, for the report.
        mean: taken from every pixel after scaling.
        std: what the rest is divided by.
        names: of the classes 0, 1, ...; empty where they are numbers.
    """

    pixels: Any
    labels: Tensor
    train: Tensor
    test: Tensor
    full_scale: float
    source: str
    mean: Channels = 0.0
    std: Channels = 1.0
    names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""
        return tuple(self.pixels.shape[1:])

    def view(
        self, rows: Tensor, labels: Tensor | None = None, order: Tensor | None = None
    ) -> ImageItems:
        """Some of them as a data set, see `ImageItems`."""
        kind = ImageSet if isinstance(self.pixels, Tensor) else ImageItems
        return kind(self.pixels, self.full_scale, rows, labels, order, mean=self.mean, std=self.std)


def digits(seed: int) -> Images:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; a fifth of each class is the test set.

    The split depends on ``seed`` alone: the digits come as one set, without a split of their own.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ScenarioError(
            f"the digits scenarios need scikit-learn: {install('train')}"
        ) from error
    bunch = load_digits()
    labels = torch.from_numpy(np.asarray(bunch.target)).to(torch.int64)
    train, test = stratified_split(labels, TEST_SHARE, seed)
    return Images(
        pixels=torch.from_numpy(np.asarray(bunch.images)).to(torch.float32).unsqueeze(1),
        labels=labels,
        train=train,
        test=test,
        full_scale=16.0,
        source="scikit-learn digits, 8x8, a fifth of each class held out for test by the seed",
    )


def joined(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], source: str) -> Images:
    """uint8 images [n, C, H, W] and labels [n] of a training and a test set, as they are."""
    count = len(train[1])
    return Images(
        pixels=torch.cat([train[0], test[0]]),
        labels=torch.cat([train[1], test[1]]),
        train=torch.arange(count),
        test=torch.arange(count, count + len(test[1])),
        full_scale=255.0,
        source=source,
    )


def prepared(
    images: Images, padding: int = 0, normalise: tuple[Channels, Channels] | None = None
) -> Images:
    """The same images with a black frame, and with a mean and a standard deviation to take out.

    Args:
        images: kept as they are.
        padding: pixels of value 0 added on every side.
        normalise: (mean, std) of pixels between 0 and 1, numbers or one for each channel:
            (x - mean) / std of the framed image.

    Raises:
        ScenarioError: a negative padding, no positive std, or another number of channels.
    """
    if padding < 0:
        raise ScenarioError(f"padding must be at least 0, got {padding}")
    mean, std = (0.0, 1.0) if normalise is None else normalise
    _check_statistics(mean, std, images.shape[0])
    source, pixels = images.source, images.pixels
    if padding:
        is_tensor = isinstance(pixels, Tensor)  # others are framed when they are decoded
        pixels = F.pad(pixels, (padding,) * 4) if is_tensor else pixels.framed(padding)
        source += f", framed to {pixels.shape[2]}x{pixels.shape[3]}"
    if normalise is not None and (mean, std) != (0.0, 1.0):
        source += f", mean {_words(mean)} and standard deviation {_words(std)} taken out"
    return dataclasses.replace(images, pixels=pixels, source=source, mean=mean, std=std)


def statistics(images: Images) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel over the training images, to 4 decimals.

    Of pixels between 0 and 1, counted: no rounding depends on the machine. Of images that are not
    in memory every n-th is looked at, about ``SAMPLED`` in all.
    """
    rows = images.train
    if not isinstance(images.pixels, Tensor):
        rows = rows[:: math.ceil(len(rows) / SAMPLED)]
    count = images.shape[0]
    found = torch.zeros(count, 256, dtype=torch.int64)
    scale = 255 / images.full_scale
    for part in rows.split(1024):
        levels = (images.pixels[part].to(torch.float32) * scale).round().to(torch.uint8)
        for channel in range(count):
            found[channel] += levels[:, channel].flatten().bincount(minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    shares = found.double() / found.sum(dim=1, keepdim=True)
    mean = (shares * values).sum(dim=1)
    std = (shares * (values - mean[:, None]).square()).sum(dim=1).sqrt()
    # Nothing can be divided by the spread of images of one colour.
    spread = [round(value, 4) or 1.0 for value in std.tolist()]
    return tuple(round(value, 4) for value in mean.tolist()), tuple(spread)


def stratified_split(labels: Tensor, test_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows (train, test), both sorted, with round(test_share n) rows of every class in test.

    numpy's RandomState is used because its stream is frozen: the split is the same under every
    numpy release.
    """
    test = []
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).flatten().numpy()
        order = np.random.RandomState([seed, label]).permutation(len(rows))
        test.append(rows[order[: round(test_share * len(rows))]])
    chosen = torch.from_numpy(np.sort(np.concatenate(test)))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[chosen] = True
    return torch.nonzero(~held_out).flatten(), chosen


def _check_statistics(mean: Channels, std: Channels, channels: int) -> None:
    for value in (mean, std):
        if not isinstance(value, (int, float)) and len(value) not in (1, channels):
            raise ScenarioError(
                f"normalise has {len(value)} numbers, the images have {channels} channels"
            )
    means, stds = _numbers(mean), _numbers(std)
    if not (all(map(math.isfinite, means + stds)) and min(stds) > 0):
        raise ScenarioError(f"normalise wants a mean and a positive std, got {mean} and {std}")


def _numbers(value: Channels) -> list[float]:
    return [value] if isinstance(value, (int, float)) else list(value)


def _words(value: Channels) -> str:
    return " ".join(f"{number:g}" for number in _numbers(value))
