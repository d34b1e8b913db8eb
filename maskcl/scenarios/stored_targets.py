"""The targets of a dataset, without reading its inputs where that can be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import StackDataset, TensorDataset

from maskcl.scenarios.base import ScenarioError

# Where datasets keep their targets: torchvision's, and those written like them.
NAMES = ("targets", "labels", "_labels", "y")
# From here on not every whole number is a float64.
LARGEST_FLOAT = 2**53


def stored_targets(dataset: Any) -> NDArray[Any] | None:
    """[N, ...] targets that a dataset holds beside its inputs, any dtype, or None.

    Looks through Subset, ConcatDataset and other wrappers with ``dataset`` and ``indices``, and
    applies ``target_transform``. What is found may be wrong: an item's own target decides.
    """
    try:
        found = _stored(dataset)
        return found if found is not None and len(found) == len(dataset) else None
    except Exception:  # of someone else's attributes; items are read instead
        return None


def _stored(dataset: Any) -> NDArray[Any] | None:
    if isinstance(dataset, TensorDataset):
        return column(dataset.tensors[1])
    if isinstance(dataset, StackDataset) and isinstance(dataset.datasets, tuple):
        second = dataset.datasets[1]
        return column([second[index] for index in range(len(second))])
    inner = getattr(dataset, "dataset", None)
    if inner is not None and hasattr(dataset, "indices"):
        whole = stored_targets(inner)
        if whole is not None:
            return whole[np.asarray(list(dataset.indices), dtype=np.int64)]
    if hasattr(dataset, "datasets") and hasattr(dataset, "cumulative_sizes"):
        parts = [stored_targets(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else _joined(parts)
    own = _own(dataset)
    return stored_targets(inner) if own is None and inner is not None else own


def _own(dataset: Any) -> NDArray[Any] | None:
    """The targets among a dataset's own attributes."""
    count, found = len(dataset), None
    for name in NAMES:
        values: Any = getattr(dataset, name, None)
        if isinstance(values, (dict, str, bytes)):  # no list in the items' order
            continue
        if hasattr(values, "__len__") and len(values) == count:
            found = column(values)
            break
    else:
        samples = getattr(dataset, "samples", None)  # (path, label), as of a folder of images
        if isinstance(samples, list) and len(samples) == count:
            found = column([sample[1] for sample in samples])
    transform = getattr(dataset, "target_transform", None)
    if found is None or transform is None:
        return found
    return column([transform(value) for value in found.tolist()])


def _joined(parts: list[Any]) -> NDArray[Any]:
    if not all(part.dtype.kind in "iuf" for part in parts):
        parts = [part.astype(object) for part in parts]
    return np.concatenate(parts)


def column(values: Any) -> NDArray[Any]:
    """Targets one below the other: numbers as they are, anything else as objects."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    if isinstance(values, np.ndarray):
        return values
    listed = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    if not any(isinstance(value, (str, bytes)) for value in listed):
        try:
            found = np.array(listed)
        except (ValueError, OverflowError):  # ragged
            found = np.array(None)
        if found.dtype.kind in "iufb":
            return found
    objects = np.empty(len(listed), dtype=object)
    for place, value in enumerate(listed):
        objects[place] = value
    return objects


def same(first: Any, second: Any) -> bool:
    """Whether two targets are one: a number and an array of it too, floats to seven digits."""
    if getattr(first, "shape", None) == ():
        first = first.item()
    if type(first) is type(second) and type(first) in (int, str):
        return bool(first == second)
    a, b = (column([value]).reshape(-1) for value in (first, second))
    if a.shape != b.shape:
        return False
    kinds = a.dtype.kind + b.dtype.kind
    if "f" in kinds and "O" not in kinds:
        return bool(np.isclose(a, b, rtol=1e-6, atol=0, equal_nan=True).all())
    return bool(np.all(a == b))


def whole_numbers(values: NDArray[Any], where: str) -> Tensor:
    """int64 [N]: labels, if they are whole numbers; floats such as 2.0 are.

    Args:
        values: [N] or [N, 1], as `column` gives them.
        where: whose they are, for the message.

    Raises:
        ScenarioError: they are not; the sentence has the first that is none.
    """
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ScenarioError(
            f"{where}: labels have the shape {values.shape[1:]} at each item, wanted one whole"
            ' number; targets="multilabel" takes rows of 0 and 1, for problems.MultiLabel'
        )
    kind = values.dtype.kind
    if kind == "O":
        bad = np.array([not _is_whole(value) for value in values], dtype=bool)
    elif kind == "f":
        wide = values.astype(np.float64)
        bad = ~((wide == np.floor(wide)) & (np.abs(wide) <= LARGEST_FLOAT))
    elif kind in "iu":
        bad = values > np.iinfo(np.int64).max
    else:
        bad = np.ones(len(values), dtype=bool)
    if bad.any():
        first = int(bad.argmax())
        raise ScenarioError(_sentence(values[first], first, where))
    return torch.from_numpy(values.astype(np.int64))


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):
        return value.is_integer() and abs(value) <= LARGEST_FLOAT
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _sentence(value: Any, index: int, where: str) -> str:
    printed = str(value) if isinstance(value, np.floating) else None  # float32 0.1 as 0.1
    value = value.item() if isinstance(value, np.generic) else value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Python refuses to print an integer of thousands of digits.
    is_long = isinstance(value, int) and abs(value) >= 10**30
    shown = "an integer of over 30 digits" if is_long else printed or repr(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    wanted = f"{where}: item {index} has the label {shown}, wanted a whole number"
    if isinstance(value, bool):
        return f"{wanted}: 0 for False and 1 for True"
    if not is_number or not -math.inf < value < math.inf:
        return wanted
    if isinstance(value, int) or value.is_integer():
        return f"{wanted} that fits into int64"
    return f'{wanted}; targets="values" takes such numbers, for problems.Regression'
