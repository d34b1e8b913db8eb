"""Long lists of numbers of a JSON value as tensors, and back: a matrix is 8 bytes a number, exact.

What is packed stands in the JSON as an object with the one key `MARK`: a list of kind and parts.

- tensor, name: numbers of one kind, float64 or int64, nested as the tensor's shape says;
- lists, lengths, items: lists of any lengths, one after the other;
- rows, count, columns: objects with the same keys, each key's values as one list;
- object, content: an object that has the key `MARK` itself.
"""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARK = "\0"
# A tensor has a hundred bytes of header: fewer numbers are shorter as text.
LEAST = 64
_DTYPES = {float: torch.float64, int: torch.int64}


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON value that stands for ``value``, with what is long in ``tensors``.

    Args:
        value: as JSON has it, or numpy arrays of float64 or int64, which stand for nested lists.
        name: what it is called, in names of tensors.
        tensors: gets those that are made, by name.
    """
    if isinstance(value, np.ndarray):
        if value.size < LEAST:
            return value.tolist()
        return _as_tensor(torch.from_numpy(np.ascontiguousarray(value)), name, tensors)
    if isinstance(value, dict):
        content = {key: pack(item, f"{name}.{key}", tensors) for key, item in value.items()}
        return {MARK: ["object", content]} if MARK in value else content
    if isinstance(value, (list, tuple)):
        return _pack_list(list(value), name, tensors)
    return value


def _pack_list(items: list[Any], name: str, tensors: dict[str, Tensor]) -> Any:
    kinds = {type(item) for item in items}
    if _leaves(items) >= LEAST and len(kinds) == 1:
        (kind,) = kinds
        if kind is float or (kind is int and max(map(abs, items)) < 1 << 63):
            return _as_tensor(torch.tensor(items, dtype=_DTYPES[kind]), name, tensors)
        if kind in (list, tuple):
            lengths = pack(list(map(len, items)), f"{name}.lengths", tensors)
            return {MARK: ["lists", lengths, pack(list(chain(*items)), name, tensors)]}
        if kind is dict and len({tuple(item) for item in items}) == 1:
            columns = {key: [item[key] for item in items] for key in items[0]}
            return {MARK: ["rows", len(items), pack(columns, name, tensors)]}
    return [pack(item, f"{name}.{at}", tensors) for at, item in enumerate(items)]


def _leaves(value: Any) -> int:
    """About how many numbers and texts there are."""
    if isinstance(value, dict):
        return sum(map(_leaves, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(_leaves, value))
    return value.size if isinstance(value, np.ndarray) else 1


def _as_tensor(tensor: Tensor, name: str, tensors: dict[str, Tensor]) -> Any:
    while name in tensors:
        name += "'"
    tensors[name] = tensor
    return {MARK: ["tensor", name]}


def packed_names(value: Any) -> set[str]:
    """Names of the tensors that a packed value needs."""
    if isinstance(value, list):
        return set().union(*map(packed_names, value))
    if not isinstance(value, dict):
        return set()
    match value.get(MARK):
        case ["tensor", str(name)]:
            return {name}
        case ["object", dict(content)]:  # in which the key stands for nothing
            return set().union(*map(packed_names, content.values()))
    return set().union(*map(packed_names, value.values()))


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` was given, with lists for arrays and tuples.

    Raises:
        ValueError: it is nothing that `pack` gave, or a tensor is missing or of another kind.
    """
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if MARK not in value:
        return {key: unpack(item, tensors) for key, item in value.items()}
    match value[MARK]:
        case ["tensor", str(name)] if name in tensors:
            if tensors[name].dtype in _DTYPES.values() and tensors[name].dim() > 0:
                return tensors[name].tolist()
        case ["lists", lengths, items]:
            return _cut(unpack(lengths, tensors), unpack(items, tensors))
        case ["rows", int(count), dict(content)]:
            return _rows(count, unpack(content, tensors))
        case ["object", dict(content)]:
            return {key: unpack(item, tensors) for key, item in content.items()}
    raise ValueError(f"packed numbers are missing or of another kind: {str(value[MARK])[:60]!r}")


def _cut(lengths: Any, items: Any) -> list[list[Any]]:
    is_whole = isinstance(lengths, list) and all(type(n) is int and n >= 0 for n in lengths)
    if not is_whole or not isinstance(items, list) or sum(lengths) != len(items):
        raise ValueError("packed lists are not as long as they should be")
    ends = np.cumsum([0, *lengths]).tolist()
    return [items[start:end] for start, end in pairwise(ends)]


def _rows(count: int, columns: dict[str, Any]) -> list[dict[str, Any]]:
    fit = [isinstance(c, list) and len(c) == count for c in columns.values()]
    if not fit or not all(fit):
        raise ValueError("packed columns are not as long as they should be")
    return [{key: column[at] for key, column in columns.items()} for at in range(count)]
