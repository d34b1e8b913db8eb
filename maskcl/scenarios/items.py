"""Datasets that a person gave: looked at once, then seen by tasks through rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.memory import Take, taker
from maskcl.scenarios.stored_targets import column, same, stored_targets

# Samples whose values are looked at together.
_CHUNK = 4096


class ItemError(RuntimeError):
    """A sample that cannot be read, or is not like the others; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Given:
    """A map-style dataset of items (x float tensor, y), looked at once.

    Attributes:
        dataset: as given.
        where: what messages call it.
        shape: of every x.
        dtype: of every x.
        targets: [N, ...] of the items, as `stored_targets.column` gives them.
        take: a whole batch (x, y, ...) at once, where the dataset is in memory.
    """

    dataset: Any
    where: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    targets: NDArray[Any]
    take: Take | None

    def read(self, index: int) -> tuple[Tensor, Any]:
        """The item (x, y).

        Raises:
            ItemError: it cannot be read, is no (x, y), or x has another shape or dtype than item 0.
        """
        x, y = _read(self.dataset, index, self.where)
        if x.shape != self.shape:
            raise ItemError(
                f"{self.where}: item {index} has the shape {tuple(x.shape)}, item 0 {self.shape}"
            )
        if x.dtype != self.dtype:  # put together, all would be of the wider one
            raise ItemError(f"{self.where}: item {index} is {x.dtype}, item 0 {self.dtype}")
        return x.detach() if x.requires_grad else x, y


def look_at(dataset: Any, where: str) -> Given:
    """Check what can be checked without reading every item, and find the targets.

    Item 0 is read. The others are where the dataset holds no targets beside its inputs, or others
    than item 0 has; then, and where inputs are in memory, all x are looked at for NaN and shapes.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    count = _count(dataset, where)
    if count == 0:
        raise ScenarioError(f"{where} has no examples")
    try:
        x, y = _read(dataset, 0, where)
        given = Given(dataset, where, tuple(x.shape), x.dtype, column([y]), _taker(dataset, x))
        if given.take is None:
            _check_finite(x[None], where, 0)
        else:
            _check_all(given.take, count, where)
        targets = stored_targets(dataset)
        if targets is None or not same(targets[0], y):
            targets = column(list(_targets(given, count)))
    except ItemError as error:
        raise ScenarioError(str(error)) from error.__cause__
    return dataclasses.replace(given, targets=targets)


def _count(dataset: Any, where: str) -> int:
    """How many items a map-style dataset has."""
    kind = type(dataset).__name__
    wanted = "wanted a map-style dataset of items (x, y), with __len__ and __getitem__"
    if isinstance(dataset, IterableDataset):
        raise ScenarioError(
            f"{where} is the iterable dataset {kind}, whose items have no order to draw; {wanted}"
        )
    is_plain = isinstance(dataset, (Tensor, np.ndarray, str, bytes, dict, DataLoader))
    if is_plain or not hasattr(dataset, "__getitem__"):
        raise ScenarioError(f"{where} is of type {kind}, {wanted}")
    try:
        return len(dataset)
    except Exception as error:
        raise ScenarioError(f"{where} is a {kind} without a length, {wanted}") from error


def _read(dataset: Any, index: int, where: str) -> tuple[Tensor, Any]:
    try:
        item = dataset[index]
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ItemError(f"{where}: item {index} cannot be read: {reason}") from error
    if not isinstance(item, (tuple, list)) or len(item) < 2:
        several = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        kind = f"{type(item).__name__}{several}"
        raise ItemError(f"{where}: item {index} is of type {kind}, wanted (x, y)")
    x = item[0]
    if not isinstance(x, Tensor):
        raise ItemError(
            f"{where}: inputs must be float tensors, got {type(x).__name__} at item {index}; a"
            " dataset's transform, such as torchvision's ToTensor, makes them"
        )
    if not x.is_floating_point():
        raise ItemError(f"{where}: inputs must be float tensors, got {x.dtype} at item {index}")
    if x.layout != torch.strided or x.is_meta:
        kind = "one without values (meta)" if x.is_meta else str(x.layout)
        raise ItemError(f"{where}: inputs must be dense tensors, got {kind} at item {index}")
    return x, item[1]


def _taker(dataset: Any, x: Tensor) -> Take | None:
    """What takes batches of a dataset, if it gives what the items give."""
    found = taker(dataset)
    if found is None:
        return None
    batch = found(torch.zeros(1, dtype=torch.int64))
    is_pair = isinstance(batch, (tuple, list)) and len(batch) >= 2
    is_like = is_pair and isinstance(batch[0], Tensor) and batch[0].shape == (1, *x.shape)
    return found if is_like else None


def _check_all(take: Take, count: int, where: str) -> None:
    for first in range(0, count, _CHUNK):
        try:
            x = take(torch.arange(first, min(first + _CHUNK, count)))[0]
        except Exception as error:
            last = min(first + _CHUNK, count) - 1
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ItemError(f"{where}: items {first} to {last} cannot be read: {reason}") from error
        _check_finite(x, where, first)


def _check_finite(x: Tensor, where: str, first: int) -> None:
    """Raise ItemError for a NaN or an infinite value in x [n, ...], items ``first`` and on."""
    finite = x.isfinite()
    if bool(finite.all()):
        return
    place = int((~finite).reshape(len(x), -1).any(1).nonzero()[0])
    value = float(x[place][~finite[place]].flatten()[0])
    raise ItemError(f"{where}: item {first + place} has {value} among its inputs")


def _targets(given: Given, count: int) -> Iterator[Any]:
    for index in range(count):
        x, y = given.read(index)
        _check_finite(x[None], given.where, index)
        yield y


class Items(Dataset):
    """Some rows of a dataset: x, or (x, the scenario's target). Read one by one.

    Every item's own target is compared with the one found when the scenario was made.

    Args:
        given: the dataset.
        rows: int64 [n], which items; None for all.
        targets: [n, ...]; None for a test set's inputs.
    """

    def __init__(self, given: Given, rows: Tensor | None, targets: Tensor | None) -> None:
        self._given, self._rows, self._labels = given, rows, targets
        self._length = len(given.targets) if rows is None else len(rows)

    @property
    def labels(self) -> Tensor | None:
        """The targets, [n, ...]; None of inputs alone."""
        return self._labels

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        if not -self._length <= index < self._length:
            raise IndexError(f"index {index} is out of range for {self._length} items")
        index = index % self._length
        row = index if self._rows is None else int(self._rows[index])
        x, y = self._given.read(row)
        wanted = self._given.targets[row]
        if not same(y, wanted.item() if isinstance(wanted, np.generic) else wanted):
            raise ItemError(
                f"{self._given.where}: item {row} has the target {_shown(y)}, but its dataset's"
                f" list of targets says {_shown(wanted)}; without such a list the items' are read"
            )
        return x if self._labels is None else (x, self._labels[index])


class ItemsInMemory(Items):
    """The same where a whole batch is read at once."""

    def take(self, indices: Tensor) -> Any:
        """x [n, ...] of int64 [n], and the targets [n, ...] where there are some."""
        take = self._given.take
        assert take is not None
        x = take(indices if self._rows is None else self._rows.index_select(0, indices))[0]
        return x if self._labels is None else (x, self._labels.index_select(0, indices))


def items(given: Given, rows: Tensor | None = None, targets: Tensor | None = None) -> Items:
    """A task's part of a dataset; see `Items`."""
    kind: Callable[..., Items] = Items if given.take is None else ItemsInMemory
    return kind(given, rows, targets)


def _shown(value: Any) -> str:
    plain = value.tolist() if hasattr(value, "tolist") else value
    return repr(plain)[:40]
