"""A forward's arguments: as examples give them, by name, and their sizes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn


def arguments_of(example_inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
    """A forward's arguments in order, or by name where they are given so."""
    if isinstance(example_inputs, Mapping):
        return dict(example_inputs)
    return tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)


def call(model: nn.Module, arguments: tuple[Any, ...] | dict[str, Any]) -> Any:
    """What a model returns for arguments as `arguments_of` gives them."""
    return model(**arguments) if isinstance(arguments, dict) else model(*arguments)


def by_name(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A call's arguments by the names that the forward gives them.

    None is left out where it is the default. What the forward does not take is numbered.
    """
    try:
        signature = inspect.signature(model.forward)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):
        return {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            found |= {f"{name}[{place}]": item for place, item in enumerate(value)}
        elif parameter.kind is parameter.VAR_KEYWORD:
            found |= value
        elif value is not None or parameter.default is not None:
            found[name] = value
    return found


def names_of(model: nn.Module, arguments: tuple[Any, ...] | dict[str, Any]) -> tuple[str, ...]:
    """Names of the arguments as `by_name` gives them, those of a dict in the dict's order."""
    if isinstance(arguments, dict):
        return tuple(arguments)
    return tuple(by_name(model, arguments, {}))


def sizes_of(arguments: Iterable[Any]) -> tuple[Any, ...]:
    """A tensor's shape without its first dimension, a number or switch itself, else the type."""

    def size(x: Any) -> Any:
        if isinstance(x, Tensor):
            return tuple(x.shape[1:])
        return x if x is None or isinstance(x, (bool, int, float, str)) else type(x).__name__

    return tuple(map(size, arguments))
