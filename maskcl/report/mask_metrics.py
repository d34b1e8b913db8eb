"""What masks use and share: overlap of tasks, bytes, shares counted by size."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray


def mask_overlap(masks: ArrayLike) -> NDArray[np.float64]:
    """[T, T]: entry (i, j) is the share of task j's units that task i uses too.

    Args:
        masks: bool[T, U]. A column is NaN where task j uses no unit.
    """
    m = np.asarray(masks)
    if m.ndim != 2 or m.dtype != np.bool_:
        raise ValueError(f"masks must be bool[tasks, units], got {m.dtype}{list(m.shape)}")
    shared = m.astype(np.float64) @ m.T.astype(np.float64)
    counts = m.sum(axis=1).astype(np.float64)
    counts[counts == 0] = np.nan
    return shared / counts[None, :]


def mask_bytes(masks: ArrayLike) -> int:
    """Bytes of one task's mask at one bit a unit. ``masks``: bool[T, U]."""
    return -(-np.asarray(masks).shape[1] // 8)


def total_share(shares: Mapping[str, float], sizes: Mapping[str, int]) -> float:
    """Share over all parts together, each counted by its size; 0 where all are empty.

    The plain mean of the shares would weigh a layer of ten weights like one of a million.

    Raises:
        ValueError: the two do not name the same parts.
    """
    if shares.keys() != sizes.keys():
        odd = ", ".join(sorted(shares.keys() ^ sizes.keys()))
        raise ValueError(f"shares and sizes must name the same parts, only one has {odd}")
    total = sum(sizes.values())
    return sum(shares[name] * sizes[name] for name in sizes) / total if total else 0.0
