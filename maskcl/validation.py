"""What a value read from a file has to be: a form, and a check that names what is not so.

A form is a type (`float` takes whole numbers too, and a bool is no number), `Any`, None, a tuple of
forms of which one must fit, ``[form]`` for a list of such, ``{str: form}`` for an object with any
keys, or an object by its keys. A key that may be absent is written with ``?`` behind it; keys that
a form does not name are left alone: a newer maskcl may have added them.
"""

from __future__ import annotations

import math
from typing import Any

from maskcl.text import printable, shown

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    None: "null",
    dict: "an object",
    list: "a list",
}


class ContentError(ValueError):
    """A value is not what it has to be; the message is one sentence."""


def check(value: Any, form: Any, where: str, name: str = "") -> None:
    """Raise ContentError unless a value has a form.

    Args:
        value: as JSON has it.
        form: see above.
        where: the file, for errors.
        name: of the value in it; empty for the whole.
    """
    if _fits(value, form):
        return
    if isinstance(form, tuple):
        # The one that is meant, if only one is of the value's kind.
        meant = [one for one in form if _kind(one) is type(value)]
        if len(meant) == 1:
            check(value, meant[0], where, name)
    elif isinstance(form, list) and isinstance(value, list):
        for index, item in enumerate(value):
            check(item, form[0], where, f"{name}[{index}]")
    elif isinstance(form, dict) and isinstance(value, dict):
        for key, one in _entries(value, form).items():
            if key not in value:
                raise ContentError(f"{where} has no {_joined(name, key)}")
            check(value[key], one, where, _joined(name, key))
    what = f"{name} is {shown(value)}" if name else f"holds {shown(value)}"
    raise ContentError(f"{where}: {what}, wanted {_in_words(form)}")


def _fits(value: Any, form: Any) -> bool:
    if form is Any:
        return True
    if form is None:
        return value is None
    if isinstance(form, tuple):
        return any(_fits(value, one) for one in form)
    if isinstance(form, list):
        is_any = form[0] is Any
        return isinstance(value, list) and (is_any or all(_fits(item, form[0]) for item in value))
    if isinstance(form, dict):
        return isinstance(value, dict) and all(
            key in value and _fits(value[key], one) for key, one in _entries(value, form).items()
        )
    if form is float:
        return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
    # JSON's whole numbers have no end; counts and seeds do.
    return type(value) is form and (form is not int or abs(value) < 1 << 63)


def _entries(value: dict[str, Any], form: dict[Any, Any]) -> dict[str, Any]:
    """By key, the forms of what an object must have, and of what it has of the rest."""
    if str in form:
        return dict.fromkeys(value, form[str])
    found = {}
    for key, one in form.items():
        bare = key.removesuffix("?")
        if bare == key or bare in value:
            found[bare] = one
    return found


def _joined(name: str, key: str) -> str:
    return f"{name}.{printable(key)}" if name else printable(key)


def _kind(form: Any) -> Any:
    return type(form) if isinstance(form, (list, dict)) else form


def _in_words(form: Any) -> str:
    if isinstance(form, tuple):
        return " or ".join(_in_words(one) for one in form)
    return _WORDS[_kind(form)]
