"""Where a masker's units lie in data that have been reshaped, permuted or multiplied since."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# NumPy's, as what is kept must not be a tensor of the mode (inference, fake) it was asked for in.
Index = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """The units lay along ``dim`` of ``shape`` before ``ops``.

    Attributes:
        dim: of the units, counted from the front.
        shape: of the data then.
        ops: what happened since: ("reshape", shape), ("permute", dims) or ("matmul", shape), the
            data having been the right factor.
        mixed: every element may come from every unit; nothing else counts then.
    """

    dim: int
    shape: tuple[int, ...]
    ops: tuple[tuple[str, tuple[int, ...]], ...] = ()
    mixed: bool = False

    def then(self, op: str, numbers: tuple[int, ...], shape: torch.Size) -> Layout:
        """The same after ``op`` on data of ``shape``."""
        if self.mixed:
            return self
        # Pooling may have changed other sizes since: only from the first op on do they count.
        start = self.shape if self.ops else tuple(shape)
        return replace(self, shape=start, ops=(*self.ops, (op, numbers)))


MIXED = Layout(0, (), mixed=True)


def unit_index(layout: Layout) -> Tensor | None:
    """The unit of each element of the data, int64 of the data's shape; None where they mix."""
    index = _unit_index(layout)
    return None if index is None else torch.from_numpy(index)


@lru_cache(maxsize=64)
def _unit_index(layout: Layout) -> Index | None:
    if layout.mixed:
        return None
    ones = [1] * len(layout.shape)
    ones[layout.dim] = -1
    units = np.arange(layout.shape[layout.dim], dtype=np.int64).reshape(ones)
    index: Index = np.broadcast_to(units, layout.shape)
    for op, numbers in layout.ops:
        if op == "reshape":
            index = index.reshape(numbers)
        elif op == "permute":
            index = index.transpose(numbers)
        elif index.shape == numbers and bool((index == index[..., :1, :]).all()):
            # Rows of the right factor are summed over: each column is one unit's all along.
            continue
        else:
            return None
    return index.copy()


@lru_cache(maxsize=64)
def feature_units(layout: Layout, feature_dim: int) -> Index | None:
    """The unit behind each feature, int64 [F]; None where a feature comes from several units."""
    index = _unit_index(layout)
    if index is None or not -index.ndim <= feature_dim < index.ndim:
        return None
    rows = np.moveaxis(index, feature_dim, -1).reshape(-1, index.shape[feature_dim])
    if rows.shape[0] == 0 or not bool((rows == rows[:1]).all()):
        return None
    return rows[0].copy()


def after_module(layout: Layout | None, before: torch.Size, after: torch.Size, units: int) -> Any:
    """The layout behind a module without weights, which says nothing about what it does.

    Args:
        layout: in front of it.
        before: shape in front of it.
        after: shape behind it.
        units: of the masker.
    """
    if layout is None or layout.mixed:
        return layout
    if layout.ops:
        return layout if before == after else MIXED
    if len(after) > layout.dim and after[layout.dim] == units:
        return Layout(layout.dim, tuple(after))
    if before.numel() == after.numel() and layout.dim == 1 and len(after) == 2:
        return layout.then("reshape", tuple(after), before)
    return MIXED
