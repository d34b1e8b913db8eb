"""Arguments under the other names that BeGin's classes give them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

# BeGin's base trainer names an argument one way, some of the classes that extend it the other.
OTHER_NAMES = {
    "_answer": "answer",
    "_curr_batch": "curr_batch",
    "_curr_dataset": "curr_dataset",
    "_prediction": "prediction",
    "training_states": "curr_training_states",
}


def either_name(function: Function) -> Function:
    """Let a function take its keyword arguments under both of BeGin's names.

    Raises:
        TypeError: (by the decorated function) an argument comes under both.
    """

    @functools.wraps(function)
    def renamed(*args: Any, **given: Any) -> Any:
        for other in OTHER_NAMES.keys() & given.keys():
            name = OTHER_NAMES[other]
            if name in given:
                raise TypeError(
                    f"{function.__qualname__}: {other} and {name} are the same argument, wanted one"
                    " of them"
                )
            given[name] = given.pop(other)
        return function(*args, **given)

    return cast(Function, renamed)
