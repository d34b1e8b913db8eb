"""The runs of `maskcl.reproduce.class_incremental`, kept in a file as they finish."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskcl.report.files import write_atomic
from maskcl.report.text import seconds
from maskcl.reproduce.class_incremental import Cell, Figures, markdown
from maskcl.reproduce.runs import ReproduceError

RESULTS, TABLE = "results.json", "results.md"
FORMAT = "maskcl-reproduce-class-incremental"

Runs = dict[str, dict[int, Figures]]


def run(
    cells: Sequence[Cell],
    seeds: Sequence[int],
    train: Callable[[Cell, int], Figures],
    *,
    directory: Path | None,
    options: Mapping[str, Any],
    made: str,
    say: Callable[[str], None] = print,
) -> str:
    """Train what the directory does not hold yet, seed after seed; returns the table.

    Args:
        cells: rows.
        seeds: of each.
        train: what trains one.
        directory: of results.json and results.md, made with the first run; None: nowhere.
        options: by cell's key, all that its figures depend on besides the seed; plain as JSON.
        made: how, on what and when, for a person.
        say: gets a line for each run.

    Raises:
        ReproduceError: the directory holds something else.
    """
    runs: Runs = {} if directory is None else read(directory, options)
    for seed in seeds:
        for cell in cells:
            of_cell = runs.setdefault(cell.key, {})
            if seed in of_cell:
                continue
            found = of_cell[seed] = train(cell, seed)
            if directory is not None:
                write(directory, options, runs)
            say(f"seed {seed}, {cell.key}: {100 * found.score:.2f}  ({seconds(found.seconds)})")
    shown = markdown(runs, cells, seeds, made)
    if directory is not None:
        write_atomic(directory / TABLE, shown.encode())
    return shown


def read(directory: Path, options: Mapping[str, Any]) -> Runs:
    """What a directory holds, to go on with under these options; nothing where it is new.

    Raises:
        ReproduceError: it is something else, of other options, or cannot be read.
    """
    path = directory / RESULTS
    if not path.exists():
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise ReproduceError(f"{directory} exists already and holds no {RESULTS}")
        return {}
    try:
        saved = json.loads(path.read_text())
        runs = {
            key: {int(seed): Figures(**found) for seed, found in of_cell.items()}
            for key, of_cell in saved["runs"].items()
        }
        known = dict(saved["options"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReproduceError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    for key, own in options.items():
        if known.get(key, own) != own:
            raise ReproduceError(
                f"{path} holds results of {key} with other options; choose a new folder"
            )
    return runs


def write(directory: Path, options: Mapping[str, Any], runs: Runs) -> None:
    """All runs so far, as a whole file."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "version": 1,
        "options": dict(options),
        "runs": {
            key: {str(seed): dataclasses.asdict(found) for seed, found in sorted(of_cell.items())}
            for key, of_cell in runs.items()
        },
    }
    write_atomic(directory / RESULTS, f"{json.dumps(content, indent=1)}\n".encode())
