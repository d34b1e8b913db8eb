"""A typer command made from a table of options."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from maskcl.cli.options import About, Options, flag_name, types_of

_CONFIG = "YAML file of the same names; flags win over it."
_RESUME = "Go on with the run in --out."


def command(
    kind: type[Options],
    run: Callable[[dict[str, Any], str | None, bool], None],
    text: str,
    *,
    resumable: bool,
) -> Callable[..., None]:
    """A function with a flag for each option of the table, and ``--config``, ``--resume``.

    Every flag's own default is None, so that ``run`` sees which were given.

    Args:
        kind: the table.
        run: called with the flags that were given, the value of ``--config`` and ``--resume``.
        text: the command's help.
        resumable: whether there is a ``--resume``.
    """

    def call(**values: Any) -> None:
        config, resume = values.pop("config"), values.pop("resume", False)
        run({name: v for name, v in values.items() if v is not None}, config, resume)

    found = types_of(kind)
    flags = {f.name: _flag(f, found[f.name][0]) for f in dataclasses.fields(kind)}
    flags["config"] = Annotated[str | None, _shown(_CONFIG, "Run")]
    parameters = [_parameter(name, None, flag) for name, flag in flags.items()]
    if resumable:
        flags["resume"] = Annotated[bool, typer.Option("--resume", help=_RESUME, **_panel("Run"))]
        parameters.append(_parameter("resume", False, flags["resume"]))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {**flags, "return": None}
    call.__doc__ = text
    return call


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _flag(field: dataclasses.Field[Any], kind: Any) -> Any:
    """The flag's type with its help, which names the default."""
    about: About = field.metadata["about"]
    default = about.shown
    if default is None and field.default not in (None, dataclasses.MISSING):
        default = str(field.default)
    text = about.help if default is None else f"{about.help} (default {default})"
    if kind is bool:
        name = flag_name(field.name)
        # What depends on other options can be turned off, too.
        names = f"--{name}/--no-{name}" if field.default is None else f"--{name}"
        return Annotated[bool | None, _shown(text, about.panel, names)]
    plain = kind if kind in (int, float, str) else str
    return Annotated[plain | None, _shown(text, about.panel)]


def _shown(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, show_default=False, **_panel(panel))


def _panel(name: str) -> dict[str, Any]:
    return {"rich_help_panel": name}
