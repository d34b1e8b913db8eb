"""Arguments under the names, and in the order, that earlier versions of CLArena gave them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def spellings(**current: str) -> Callable[[Function], Function]:
    """Let a function take keyword arguments under older names too.

    Args:
        current: older name -> the name of today.

    Raises:
        TypeError: (by the decorated function) an argument comes under both names.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def renamed(*args: Any, **options: Any) -> Any:
            for older, name in current.items():
                if older not in options:
                    continue
                if name in options:
                    raise TypeError(
                        f"{function.__qualname__}: {older} and {name} are the same argument,"
                        " wanted one of them"
                    )
                options[name] = options.pop(older)
            return function(*args, **options)

        vars(renamed)["older_names"] = current
        return cast(Function, renamed)

    return decorate


def older_order(names: str, tell: Callable[..., bool]) -> Callable[[Function], Function]:
    """Let a method take positional arguments in the order of an earlier version too.

    Args:
        names: that order, without self.
        tell: called with self and the positional arguments, no more than there are names: whether
            they can only be meant in that order.

    Raises:
        TypeError: (by the decorated method) an argument comes by its place and by its name.
    """
    order = names.split()

    def decorate(method: Function) -> Function:
        @functools.wraps(method)
        def reordered(self: Any, *args: Any, **options: Any) -> Any:
            if len(args) <= len(order) and tell(self, *args):
                return method(self, **dict(zip(order, args)), **options)
            return method(self, *args, **options)

        vars(reordered)["older_order"] = order
        return cast(Function, reordered)

    return decorate


def is_at(place: int, kind: type | tuple[type, ...]) -> Callable[..., bool]:
    """A ``tell`` for `older_order`: an argument of this kind has this place, counted from 0."""

    def tell(self: Any, *args: Any) -> bool:
        return len(args) > place and isinstance(args[place], kind)

    return tell


MASK = Mapping
"""The kind of a mask, layer -> [units], where a later version has a task ID."""
