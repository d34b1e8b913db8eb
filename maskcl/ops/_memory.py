"""Which bytes of its storage a dense tensor has, by its shape and strides alone."""

from __future__ import annotations

import torch
from torch import Tensor


def overlaps_itself(tensor: Tensor) -> bool:
    """Whether two elements are one in memory, as ``expand`` and some ``as_strided`` have it."""
    if tensor.is_contiguous():
        return False
    sides = sorted(
        (step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1
    )
    if any(size == 0 for _, size in sides):
        return False
    reach = 0
    for step, size in sides:
        if step <= reach:  # windows over one another, or nested strides that happen to miss
            return step == 0 or int(_marks(tensor, *_span(tensor)).sum()) < tensor.nbytes
        reach += step * (size - 1)
    return False


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have a byte in common; b may not be expanded."""
    if a.numel() == 0 or b.numel() == 0:
        return False
    (a_first, a_end), (b_first, b_end) = _span(a), _span(b)
    if a_end <= b_first or b_end <= a_first:
        return False
    if a.is_contiguous() and b.is_contiguous():
        return True
    first, end = min(a_first, b_first), max(a_end, b_end)
    return bool(_bytes(_marks(b, first, end), a, first).any())


def _span(tensor: Tensor) -> tuple[int, int]:
    """The first byte that a tensor has, and the first behind it."""
    last = sum(step * (size - 1) for step, size in zip(tensor.stride(), tensor.shape, strict=True))
    size, first = tensor.element_size(), int(tensor.storage_offset())
    return first * size, (first + last + 1) * size


def _marks(tensor: Tensor, first: int, end: int) -> Tensor:
    """Bool, one a byte of the storage from ``first`` to ``end``: whether ``tensor`` has it."""
    marks = torch.zeros(end - first, dtype=torch.bool)
    _bytes(marks, tensor, first).fill_(True)
    return marks


def _bytes(marks: Tensor, tensor: Tensor, first: int) -> Tensor:
    """Those of ``marks`` that are the tensor's bytes, in its shape."""
    size = tensor.element_size()
    steps = (*(step * size for step in tensor.stride()), 1)
    return marks.as_strided((*tensor.shape, size), steps, tensor.storage_offset() * size - first)
