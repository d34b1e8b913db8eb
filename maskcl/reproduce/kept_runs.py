"""Runs of a table of our own in a file: gone on with later, never under other options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maskcl.report.files import write_atomic
from maskcl.reproduce.runs import ReproduceError

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
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ReproduceError(f"{directory} exists already and holds no {RESULTS}")
        return {"options": dict(options)}, {}
    try:
        content = json.loads(path.read_text())
        runs = {
            key: {int(seed): figures(**found) for seed, found in of_cell.items()}
            for key, of_cell in content["runs"].items()
        }
        known = content["options"] = dict(content["options"])
        for name in needed:
            content[name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReproduceError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    for key, own in options.items():
        if known.setdefault(key, own) != own:
            raise ReproduceError(
                f"{path} holds results of {key} with other options; choose a new folder"
            )
    return content, runs


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
    text = json.dumps(content, indent=1, allow_nan=False)
    write_atomic(directory / RESULTS, f"{text}\n".encode())
