"""Images in memory, seen by a task through indices and, if asked, a permutation of the pixels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset


class ImageSet(Dataset):
    """Some rows of a shared array of images, with or without labels.

    The array stays as it was read (uint8 for idx files), once for all tasks: ten permuted tasks
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
        images: Tensor,
        full_scale: float,
        rows: Tensor,
        labels: Tensor | None = None,
        permutation: Tensor | None = None,
        *,
        mean: float = 0.0,
        std: float = 1.0,
    ) -> None:
        self._images = images
        self._full_scale = full_scale
        self._rows = rows
        self.labels = labels
        self._permutation = permutation
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Tensor | tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} images")
        found = self.take(torch.tensor([index]))
        return found[0] if isinstance(found, Tensor) else (found[0][0], found[1][0])

    def take(self, indices: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """A whole batch with one indexing: x float32[B, C, H, W], and y int64[B] where labelled."""
        pixels = self._images[self._rows[indices]].to(torch.float32) / self._full_scale
        if (self._mean, self._std) != (0.0, 1.0):
            pixels = (pixels - self._mean) / self._std
        if self._permutation is not None:
            pixels = pixels.flatten(2)[:, :, self._permutation].reshape(pixels.shape)
        return pixels if self.labels is None else (pixels, self.labels[indices])
