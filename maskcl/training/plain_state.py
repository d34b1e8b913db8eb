"""A scheduler's state as JSON and tensors, and back: nothing is pickled."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from torch import Tensor

_MAPPINGS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "Counter": Counter}


def pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A JSON value that stands for ``value``; tensors go into ``tensors``.

    Args:
        value: None, numbers, text, tensors; lists, tuples and dicts of such.
        name: what it is called, in names of tensors and in the error.
        tensors: gets those that are found, by name.

    Raises:
        TypeError: something is of another type.
    """
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(float(value))}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [pack(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return {"tuple": items} if isinstance(value, tuple) else items
    for kind, mapping in _MAPPINGS.items():
        if type(value) is mapping:  # keys may be numbers, which JSON would make text
            pairs = [[key, pack(item, f"{name}.{key}", tensors)] for key, item in value.items()]
            return {kind: pairs}
    raise TypeError(f"{name} is a {type(value).__name__}, which a checkpoint cannot hold")


def unpack(packed: Any, tensors: dict[str, Tensor]) -> Any:
    """What `pack` was given.

    Raises:
        ValueError: it is nothing that `pack` gave.
    """
    if isinstance(packed, list):
        return [unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    if len(packed) != 1:
        raise ValueError(f"found {sorted(packed)}, wanted one kind of value")
    ((kind, content),) = packed.items()
    try:
        if kind == "tensor":
            return tensors[content]
        if kind == "float":
            return float(content)
        if kind == "tuple":
            return tuple(unpack(item, tensors) for item in content)
        return _MAPPINGS[kind]({key: unpack(item, tensors) for key, item in content})
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"found {kind!r} of something that it cannot be of") from None
