"""Options as tables: a field is a flag, a line of ``--config`` and a value of a saved run.

A command's table says for each option its type, default, help and range; the flags
(``maskcl.cli.flags``), the checks below and ``--help`` all come from it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from maskcl.reading import ReadError, read_yaml
from maskcl.text import shown


class CommandError(ValueError):
    """Something the person asked for cannot be; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class About:
    """What a field of a table says about its option.

    Attributes:
        help: for ``--help``; the default is added to it.
        panel: the heading that it stands under there.
        shown: the default in words, where the field's own default is None.
        choices: the only values, or None.
        low: least value, refused itself where ``strict``.
        high: first value that is too large.
        strict: whether ``low`` is refused.
    """

    help: str
    panel: str
    shown: str | None
    choices: tuple[str, ...] | None
    low: float
    high: float
    strict: bool


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    panel: str = "Run",
    shown: str | None = None,
    choices: tuple[str, ...] | None = None,
    at_least: float = -math.inf,
    above: float | None = None,
    below: float = math.inf,
) -> Any:
    """A field of a table; without a default the option must be given."""
    low, strict = (at_least, False) if above is None else (above, True)
    about = About(help, panel, shown, choices, low, below, strict)
    return dataclasses.field(default=default, metadata={"about": about})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """A command's values, by the name of its flag with - for _; checked when made.

    Raises:
        CommandError: a value is not among its choices or outside its range.
    """

    # May change between the start of a run and its resumption: the result does not depend on them.
    MAY_CHANGE: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            choices, value = field.metadata["about"].choices, getattr(self, field.name)
            if choices is not None and value is not None and value not in choices:
                raise CommandError(
                    f"unknown {flag_name(field.name)} {shown(value)}: known are"
                    f" {', '.join(choices)}"
                )
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                _check_range(field.name, value, field.metadata["about"])

    def to_json(self) -> dict[str, Any]:
        """All values, for result.json and for a later ``--resume``."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


Kind = TypeVar("Kind", bound=Options)


def _check_range(name: str, value: float, about: About) -> None:
    if math.isinf(about.low) and math.isinf(about.high):
        return  # whatever asks for the value checks it
    low_fits = value > about.low if about.strict else value >= about.low
    if math.isfinite(value) and low_fits and value < about.high:
        return
    above = "above" if about.strict else "at least"
    below = f" and below {about.high:.10g}" if math.isfinite(about.high) else ""
    wanted = "be" if math.isfinite(value) else "be a finite number"
    raise CommandError(f"{flag_name(name)} must {wanted} {above} {about.low:g}{below}, got {value}")


def flag_name(name: str) -> str:
    """The name as a person writes it."""
    return name.replace("_", "-")


def types_of(kind: type[Options]) -> dict[str, tuple[Any, bool]]:
    """For each option the type of its values, and whether None is one too."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        optional = isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)
        kinds = [t for t in typing.get_args(hint) if t is not type(None)] if optional else [hint]
        found[field.name] = (kinds[0], optional)
    return found


def read_config(kind: type[Options], path: Path) -> dict[str, Any]:
    """The values of a YAML file, by the flags' names with - or _."""
    try:
        content = read_yaml(path)
    except ReadError as error:
        raise CommandError(f"--config {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CommandError(f"--config {path} must hold 'name: value' lines")
    return check_values(kind, {str(name): value for name, value in content.items()}, str(path))


def check_values(
    kind: type[Options], values: dict[str, Any], where: str, hint: str = ""
) -> dict[str, Any]:
    """The same values with _ in their names and of the right types.

    Args:
        kind: the command's table.
        values: by name.
        where: they are from, for errors.
        hint: on an unknown name.

    Raises:
        CommandError: an unknown name or a value of another type; ``where`` is named.
    """
    known = types_of(kind)
    checked = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in known:
            raise CommandError(f"{where}: unknown key {shown(given)}{hint}")
        checked[name] = _convert(name, value, where, *known[name])
    return checked


def combine(
    kind: type[Kind],
    flags: dict[str, Any],
    config: dict[str, Any],
    saved: dict[str, Any] | None,
    how: str = "--resume",
    where: str = "config.json",
) -> Kind:
    """One set of options: flags win over the file, the file over a saved run, that over defaults.

    Args:
        kind: the command's table.
        flags: those that were given.
        config: the file's values.
        saved: the values of the run to resume, which the others must not contradict.
        how: the flag that goes on with it, for errors.
        where: the saved run's file, likewise.

    Raises:
        CommandError: something is missing, out of range, or differs from the saved run.
    """
    asked = {**config, **flags}
    if saved is not None:
        saved = check_saved(kind, saved, where)
        for name, value in asked.items():
            was = saved.get(name)
            if name not in kind.MAY_CHANGE and value != was:
                raise CommandError(
                    f"the run in {flags['out']} has {flag_name(name)} {was}, which {how} "
                    f"cannot change to {value}"
                )
        asked = {**saved, **asked}
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING and field.name not in asked:
            name = flag_name(field.name)
            missing = f"--{name} is missing" if saved is None else f"{where} has no {name}"
            raise CommandError(missing)
    return kind(**asked)


def check_saved(kind: type[Options], saved: dict[str, Any], where: str) -> dict[str, Any]:
    """A saved run's values, checked as those of a person are.

    Raises:
        CommandError: one is not what its option takes, or belongs to no option; ``where`` is named.
    """
    hint = ", which this maskcl does not have: was the run made by a newer one?"
    checked = check_values(kind, saved, where, hint)
    needed = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    try:
        if needed <= checked.keys():
            kind(**checked)
    except CommandError as error:
        raise CommandError(f"{where}: {error}") from None
    return checked


def _convert(name: str, value: Any, where: str, wanted: Any, optional: bool) -> Any:
    """A value of the option's type. YAML reads 1e-3 as text and 32 as a number; both are meant."""
    if value is None and optional:
        return None
    try:
        if wanted == tuple[int, ...]:
            return parse_widths(value)
        if wanted is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        if wanted is int:
            if isinstance(value, float) or abs(int(value)) >= 1 << 63:
                raise ValueError
            return int(value)
        if wanted is str and "\0" in str(value):
            raise ValueError
        return float(value) if wanted is float else str(value)
    except (ValueError, TypeError, OverflowError):
        meant = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        text = meant.get(wanted, "widths such as 200,200")
        said = f"{flag_name(name)} must be {text}, got {shown(value)}"
        raise CommandError(f"{where}: {said}") from None


def parse_groups(text: str | None) -> list[list[int]] | None:
    """Lists of classes from "0,1/2,3"; None for None.

    Raises:
        CommandError: it is none.
    """
    if text is None:
        return None
    try:
        return [[int(label) for label in part.split(",")] for part in text.split("/")]
    except ValueError:
        raise CommandError(f"groups must be classes such as 0,1/2,3, got {shown(text)}") from None


def parse_names(text: str | None) -> list[str] | None:
    """Names from "mnist,usps"; None for None."""
    return None if text is None else [part.strip() for part in text.split(",")]


def parse_widths(value: Any) -> tuple[int, ...]:
    """Widths from "200,200", 200 or a list."""
    if isinstance(value, str):
        value = value.split(",")
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, (bool, float)) for part in parts):
        raise TypeError(f"widths must be whole numbers, got {value!r}")
    widths = tuple(int(part) for part in parts)
    if not widths or min(widths) < 1 or max(widths) >= 1 << 31:
        raise ValueError(f"widths must be at least 1 and below 2**31, got {value!r}")
    return widths
