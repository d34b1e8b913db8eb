"""Which part of a widened tensor a task sees that was finished before it was widened.

Such a task computes with tensors of the shapes that it always had: the same calls, and so the same
order of every sum and the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Spans = tuple[tuple[int, int], ...]
"""Ranges (start, length) of a dimension that stay, in their order."""


@dataclass(frozen=True)
class Narrow:
    """What a task sees of a module; None where that is all.

    Attributes:
        out: of its output channels.
        into: of its inputs.
    """

    out: Spans | None = None
    into: Spans | None = None

    def channels(self, tensor: Tensor) -> Tensor:
        """Of a mask or bias [O]."""
        return tensor if self.out is None else _like(tensor, _cut(tensor, 0, self.out))

    def weight(self, tensor: Tensor) -> Tensor:
        """Of a weight [O, I, *], in its order of memory."""
        new = tensor if self.out is None else _cut(tensor, 0, self.out)
        new = new if self.into is None else _cut(new, 1, self.into)
        return tensor if new is tensor else _like(tensor, new)


def spans_of(index: Sequence[int]) -> Spans:
    """Ranges that list these numbers, which rise, one after the other."""
    found: list[tuple[int, int]] = []
    for number in index:
        if found and sum(found[-1]) == number:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((number, 1))
    return tuple(found)


def numbers_of(spans: Spans) -> list[int]:
    """The numbers in the ranges."""
    return [number for start, length in spans for number in range(start, start + length)]


def is_in_last_order(tensor: Tensor) -> bool:
    """Whether images or their weights lie with the channels last in memory, and not also first."""
    is_image = tensor.dim() == 4 and not tensor.is_contiguous()
    return is_image and tensor.is_contiguous(memory_format=torch.channels_last)


def _cut(tensor: Tensor, dim: int, spans: Spans) -> Tensor:
    parts = [tensor.narrow(dim, start, length) for start, length in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _like(tensor: Tensor, part: Tensor) -> Tensor:
    """``part`` dense, as ``tensor`` lies, and with gradients wherever that has them."""
    last = is_in_last_order(tensor)
    part = part.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    if tensor.requires_grad and not part.requires_grad:
        # Some of torch's products ask it, in whatever mode, and choose their order of sums by it.
        part = part.detach().requires_grad_()
    return part
