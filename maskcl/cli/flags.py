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
_ADD_TASKS = "Go on with the finished run in --out, with this many more tasks of its scenario."
_FROM = "Finished run whose network learns --scenario too; what is not given is as it was there."


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        resume: at the checkpoint in its folder.
        add_tasks: after the last task of the finished run there, with this many more; or None.
        source: with the network of the finished run in this folder; or None.
    """

    resume: bool = False
    add_tasks: int | None = None
    source: str | None = None


def command(
    kind: type[Options],
    run: Callable[[dict[str, Any], str | None, Start], None],
    text: str,
    *,
    resumable: bool,
) -> Callable[..., None]:
    """A function with a flag for each option of the table, ``--config`` and those of `Start`.

    Every flag's own default is None, so that ``run`` sees which were given.

    Args:
        kind: the table.
        run: called with the flags that were given, the value of ``--config`` and where to begin.
        text: the command's help.
        resumable: whether there are ``--resume``, ``--add-tasks`` and ``--from``.
    """

    def call(**values: Any) -> None:
        config, start = values.pop("config"), Start()
        if resumable:
            start = Start(values.pop("resume"), values.pop("add_tasks"), values.pop("source"))
        run({name: v for name, v in values.items() if v is not None}, config, start)

    found = types_of(kind)
    flags = {f.name: _flag(f, found[f.name][0]) for f in dataclasses.fields(kind)}
    flags["config"] = Annotated[str | None, _shown(_CONFIG, "Run")]
    parameters = [_parameter(name, None, flag) for name, flag in flags.items()]
    if resumable:
        flags["resume"] = Annotated[bool, typer.Option("--resume", help=_RESUME, **_panel("Run"))]
        flags["add_tasks"] = Annotated[int | None, _shown(_ADD_TASKS, "Run", "--add-tasks")]
        flags["source"] = Annotated[str | None, _shown(_FROM, "Run", "--from")]
        parameters.append(_parameter("resume", False, flags["resume"]))
        parameters += [_parameter(name, None, flags[name]) for name in ("add_tasks", "source")]
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
