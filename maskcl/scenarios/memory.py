"""Whole batches at once out of data sets that are in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, StackDataset, Subset, TensorDataset

from maskcl.scenarios.base import length

Take = Callable[[Tensor], Any]


def taker(dataset: Any) -> Take | None:
    """What gives the items at int64 [n] as one batch; None where items are read one by one.

    Of a tensor, a TensorDataset, a dataset with ``take(indices)``, and torch's Subset,
    ConcatDataset and StackDataset of such. A subclass may read its items in its own way, and is
    left alone.
    """
    kind = type(dataset)
    if isinstance(dataset, Tensor):
        return _rows_of(dataset)
    own: Take | None = getattr(dataset, "take", None)
    if isinstance(dataset, Dataset) and callable(own):
        return own
    if kind is TensorDataset:
        return _side_by_side([_rows_of(tensor) for tensor in dataset.tensors])
    if kind is Subset:
        inner = taker(dataset.dataset)
        return None if inner is None else _within(inner, subset_rows(dataset))
    if kind is ConcatDataset:
        return _after_each_other(_all(dataset.datasets), dataset.cumulative_sizes)
    if kind is StackDataset and isinstance(dataset.datasets, tuple):
        return _side_by_side(_all(dataset.datasets))
    return None


def subset_rows(subset: Subset[Any]) -> Tensor:
    """int64 [n]: where in its dataset a Subset's items are, counted from the front."""
    rows = torch.as_tensor(subset.indices, dtype=torch.int64)
    return torch.where(rows < 0, rows + length(subset.dataset), rows)


def _all(datasets: Any) -> list[Take] | None:
    found = [taker(dataset) for dataset in datasets]
    return None if None in found else found  # type: ignore[return-value]


def _rows_of(tensor: Tensor) -> Take:
    # For dense rows a third of the time that tensor[rows] takes; rows need the tensor's device.
    if tensor.device.type == "cpu" and tensor.layout == torch.strided:
        return lambda rows: tensor.index_select(0, rows)
    return lambda rows: tensor[rows]


def _within(take: Take, chosen: Tensor) -> Take:
    return lambda rows: take(chosen.index_select(0, rows))


def _side_by_side(takes: list[Take] | None) -> Take | None:
    if takes is None:
        return None
    return lambda rows: tuple(take(rows) for take in takes)


def _after_each_other(takes: list[Take] | None, ends: list[int]) -> Take | None:
    if takes is None:
        return None
    bounds = torch.tensor(ends)
    starts = torch.tensor([0, *ends[:-1]])

    def take(rows: Tensor) -> Any:
        part = torch.bucketize(rows, bounds, right=True)
        place = part.argsort(stable=True)
        counts = torch.bincount(part, minlength=len(takes)).tolist()
        inside = (rows - starts[part])[place].split(counts)
        pieces = [each(some) for each, some in zip(takes, inside, strict=True) if len(some)]
        back = place.argsort()
        if isinstance(pieces[0], Tensor):
            return torch.cat(pieces).index_select(0, back)
        columns = zip(*pieces, strict=True)
        return tuple(torch.cat(column).index_select(0, back) for column in columns)

    return take
