"""The runs of `maskcl.reproduce.class_incremental`, kept in a file as they finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maskcl.files import write_atomic
from maskcl.report.text import seconds
from maskcl.reproduce.class_incremental import Cell, Figures, markdown
from maskcl.reproduce.kept_runs import read_runs, write_runs

TABLE = "results.md"
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
    runs: Runs = {} if directory is None else read_runs(directory, options, Figures)[1]
    for seed in seeds:
        for cell in cells:
            of_cell = runs.setdefault(cell.key, {})
            if seed in of_cell:
                continue
            found = of_cell[seed] = train(cell, seed)
            if directory is not None:
                write_runs(directory, FORMAT, options, runs)
            say(f"seed {seed}, {cell.key}: {100 * found.score:.2f}  ({seconds(found.seconds)})")
    shown = markdown(runs, cells, seeds, made)
    if directory is not None:
        write_atomic(directory / TABLE, shown.encode())
    return shown
