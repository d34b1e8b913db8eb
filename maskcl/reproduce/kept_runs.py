"""Runs of a table of our own in a file: gone on with later, never under other options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maskcl.files import write_json
from maskcl.reading import ReadError, read_json
from maskcl.reproduce.runs import ReproduceError, is_foreign
from maskcl.validation import ContentError, check

RESULTS = "results.json"
Figures = TypeVar("Figures")


def read_runs(
    directory: Path,
    options: Mapping[str, Any],
    figures: type[Figures],
    needed: Sequence[str] = (),
) -> tuple[dict[str, Any], dict[str, dict[int, Figures]]]:
    """The file's content, its options completed by these, and its runs by key and seed.

    Nothing but the options where the directory is new.

    Args:
        directory: of the file.
        options: by key, all that its figures depend on besides the seed; plain as JSON.
        figures: what a run is kept as, a dataclass.
        needed: what else the content must have.

    Raises:
        ReproduceError: it is something else, of other options, or cannot be read.
    """
    path = directory / RESULTS
    if not path.exists():
        if is_foreign(directory):
            raise ReproduceError(f"{directory} exists already and holds no {RESULTS}")
        return {"options": dict(options)}, {}
    try:
        content = read_json(path)
        check(content, {"runs": {str: {str: _form_of(figures)}}, "options": {str: Any}}, str(path))
        runs = {
            key: {int(seed): figures(**found) for seed, found in of_cell.items()}
            for key, of_cell in content["runs"].items()
        }
        known = content["options"] = dict(content["options"])
        for name in needed:
            content[name]
    except (ReadError, ContentError) as error:
        raise ReproduceError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReproduceError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    for key, own in options.items():
        if known.setdefault(key, own) != own:
            raise ReproduceError(
                f"{path} holds results of {key} with other options; choose a new folder"
            )
    return content, runs


def _form_of(figures: type[Any]) -> dict[str, Any]:
    """What a run has to be in the file: numbers where the dataclass has numbers."""
    forms = {float: float, float | None: (float, None), list[float]: [float]}
    return {name: forms.get(kind, Any) for name, kind in typing.get_type_hints(figures).items()}


def write_runs(
    directory: Path, form: str, options: Any, runs: Mapping[str, Mapping[int, Any]], **beside: Any
) -> None:
    """All runs so far, as a whole file; ``form`` says of which table, ``beside`` is kept too."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "format": form,
        "version": 1,
        "options": dict(options),
        "runs": {
            key: {str(seed): dataclasses.asdict(found) for seed, found in sorted(of_cell.items())}
            for key, of_cell in runs.items()
        },
        **beside,
    }
    write_json(directory / RESULTS, content)
