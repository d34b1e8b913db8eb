"""Arguments under the names that earlier versions of CLArena gave them."""

from __future__ import annotations

import functools
from collections.abc import Callable
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

        return cast(Function, renamed)

    return decorate
