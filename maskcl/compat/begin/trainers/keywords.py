"""The keywords of a trainer: which are known, and a method's as attributes that may be set."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import FunctionType
from typing import Any

# What every trainer takes besides its method's keywords.
KEYWORDS: dict[str, Any] = {
    "scheduler_fn": None,
    "benchmark": False,
    "seed": 0,
    "full_mode": False,
    "verbose": True,
    "binary": False,
    "tmp_save_path": None,
    "pretraining": None,
}


class Keyword:
    """A method's keyword as an attribute of its trainer; the method follows when it is set."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, trainer: Any, kind: type | None = None) -> Any:
        return self if trainer is None else trainer._method_options[self.name]

    def __set__(self, trainer: Any, value: Any) -> None:
        trainer._set_method({**trainer._method_options, self.name: value})


def checked(kind: type, known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All options, the known ones' defaults where nothing is given.

    A class of the user's own may take further keywords: those that its ``keywords`` name, and, if
    it has an ``__init__`` of its own, any but such as look like a known one misspelt.

    Args:
        kind: the trainer's class.
        known: keyword -> default.
        given: to its constructor.

    Raises:
        TypeError: nobody knows a keyword; the message names those that are known.
    """
    own = [
        vars(base)["__init__"]
        for base in kind.__mro__
        if "__init__" in vars(base) and _is_foreign(base)
    ]
    mentioned = {word for function in own for word in _words(function)}
    for name in given:
        if name in known or name in mentioned:
            continue
        if not own or difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            raise TypeError(
                f"{kind.__name__}: no keyword {name!r}, known are {', '.join(known)}"
                " (a subclass names its own in its attribute `keywords`)"
            )
    return {**known, **given}


def _is_foreign(kind: type) -> bool:
    return kind is not object and kind.__module__.split(".")[0] != "maskcl"


def _words(function: Any) -> Iterable[str]:
    """Names of arguments and words in a function's code, such as those that it looks up."""
    if not isinstance(function, FunctionType):
        return ()
    code = function.__code__
    return [*code.co_varnames, *(word for word in code.co_consts if isinstance(word, str))]
