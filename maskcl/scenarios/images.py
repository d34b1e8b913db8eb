"""Images seen by a task through indices and, if asked, a permutation of the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

# Of all channels alike, or of each.
Channels = float | Sequence[float]


class Pixels(Protocol):
    """All images of a source: a tensor, or files that are decoded when they are asked for."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        ...

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Images [B, C, H, W] of int64[B] rows."""
        ...


class ImageItems(Dataset):
    """Some rows of a source's images, with or without labels.

    The images stay as they were read (uint8 for files), once for all tasks: ten permuted tasks
    of 70,000 images would be 2.2 GB as float32.

    Args:
        images: [N, C, H, W], any dtype.
        full_scale: pixel value that becomes 1.0.
        rows: int64[n], which images.
        labels: int64[n] local labels, or None for a test set's inputs.
        permutation: int64[H*W], where each pixel comes from, the same in every channel.
        mean: taken from every pixel after scaling.
        std: what the rest is divided by.
    """

    def __init__(
        self,
        images: Pixels,
        full_scale: float,
        rows: Tensor,
        labels: Tensor | None = None,
        permutation: Tensor | None = None,
        *,
        mean: Channels = 0.0,
        std: Channels = 1.0,
    ) -> None:
        self._images = images
        self._full_scale = full_scale
        self._rows = rows
        self.labels = labels
        self._permutation = permutation
        self._is_normalised = (mean, std) != (0.0, 1.0)
        self._mean, self._std = _by_channel(mean), _by_channel(std)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        found = self.read(torch.tensor([index]))
        return found[0] if isinstance(found, Tensor) else (found[0][0], found[1][0])

    def read(self, indices: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """A whole batch: x float32[B, C, H, W], and y int64[B] where labelled."""
        pixels = self._pixels(self._rows.index_select(0, indices))
        if self._permutation is not None:  # while a pixel is a byte
            flat = pixels.flatten(2)
            order = self._permutation.expand(flat.shape)  # gather: half of index_select's time
            pixels = flat.gather(2, order).reshape(pixels.shape)
        pixels = pixels.to(torch.float32, copy=True).div_(self._full_scale)
        if self._is_normalised:
            pixels.sub_(self._mean).div_(self._std)
        return pixels if self.labels is None else (pixels, self.labels.index_select(0, indices))

    def _pixels(self, rows: Tensor) -> Tensor:
        images = self._images
        # Of a tensor a third of the time that images[rows] takes.
        return images.index_select(0, rows) if isinstance(images, Tensor) else images[rows]


class ImageSet(ImageItems):
    """The same of images in memory: a batch is one indexing. Items of files are worth workers."""

    def take(self, indices: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """A whole batch with one indexing: x float32[B, C, H, W], and y int64[B] where labelled."""
        return self.read(indices)


def _by_channel(value: Channels) -> Any:
    """A number as it is, those of channels as float32[C, 1, 1]."""
    if isinstance(value, (int, float)):
        return value
    return torch.tensor(value, dtype=torch.float32).reshape(-1, 1, 1)
