"""A published table's runs: one after the other, kept in a file as they finish, shown as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskcl.files import write_atomic, write_json
from maskcl.lock import LOCK
from maskcl.reading import ReadError, read_json
from maskcl.report.text import grid, scientific, seconds
from maskcl.reproduce.table import Published, Row, Run, mean_and_spread

RESULTS, TEXT = "results.json", "results.txt"
FORMAT = "maskcl-reproduce"


class ReproduceError(ValueError):
    """A file of results that cannot be gone on with; the message is one sentence."""


Runs = dict[str, dict[int, Run]]


def reproduce(
    table: Published,
    data: str,
    seeds: int,
    *,
    directory: Path | None = None,
    device: str = "auto",
    facts: dict[str, Any] | None = None,
    say: Callable[[str], None] = print,
) -> str:
    """Every row for seeds 0 to ``seeds - 1``; what the directory holds already is not run again.

    Args:
        table: which.
        data: folder of the data set.
        seeds: at least 1.
        directory: where results.json and results.txt go; made with the first run. None: nowhere.
        device: auto, cpu or cuda.
        facts: of the machine, for results.json.
        say: gets a line for each run.

    Returns:
        The table as text.

    Raises:
        ScenarioError: the data are not there, or damaged; nothing has been written then.
        ReproduceError: the directory holds results of something else.
    """
    done = read(table, directory) if directory is not None else {row.key: {} for row in table.rows}
    settings = dict.fromkeys(row.setting for row in table.rows)
    scenarios = {setting: table.load(data, setting) for setting in settings}
    for seed in range(seeds):
        for row in table.rows:
            if seed in done[row.key]:
                continue
            run = table.train(scenarios[row.setting], row, seed, device)
            done[row.key][seed] = run
            if directory is not None:
                write(table, done, directory, facts)
            say(f"seed {seed}, {row.key}: {run.average:.2f}  ({seconds(run.seconds)})")
    shown = text(table, done, range(seeds))
    if directory is not None:
        write_atomic(directory / TEXT, f"{shown}\n".encode())
    return shown


def read(table: Published, directory: Path) -> Runs:
    """Runs that a directory holds, by row and seed; none where it does not exist yet.

    Raises:
        ReproduceError: they are of another table or protocol, or cannot be read.
    """
    path = directory / RESULTS
    if not path.exists():
        if is_foreign(directory):
            raise ReproduceError(f"{directory} exists already and holds no {RESULTS}")
        return {row.key: {} for row in table.rows}
    try:
        saved = read_json(path)
        found = {part["row"]: part["runs"] for part in saved["rows"]}
        runs = {
            key: {int(run["seed"]): Run(**{f: run[f] for f in _RUN}) for run in of_row}
            for key, of_row in found.items()
        }
    except ReadError as error:
        raise ReproduceError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ReproduceError(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    same = saved.get("table") == table.name and saved.get("protocol") == table.protocol
    if not same or [_about(row) for row in table.rows] != [_kept(part) for part in saved["rows"]]:
        raise ReproduceError(f"{path} holds results of another protocol; choose a new folder")
    return runs


def is_foreign(directory: Path) -> bool:
    """Whether something is there that results cannot be kept in."""
    if not directory.exists():
        return False
    return not directory.is_dir() or any(path.name != LOCK for path in directory.iterdir())


_RUN = [field.name for field in dataclasses.fields(Run)]


def write(
    table: Published, done: Runs, directory: Path, facts: dict[str, Any] | None = None
) -> None:
    """All runs so far, as a whole file."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for row in table.rows:
        runs = done[row.key]
        mean, spread = mean_and_spread(list(runs.values())) if runs else (None, None)
        each = [
            {"seed": seed, "average": run.average, **dataclasses.asdict(run)}
            for seed, run in sorted(runs.items())
        ]
        rows.append({**_about(row), "mean": mean, "std": spread, "runs": each})
    content = {
        "format": FORMAT,
        "version": 1,
        "table": table.name,
        "title": table.title,
        "protocol": table.protocol,
        "rows": rows,
        "environment": facts or {},
    }
    write_json(directory / RESULTS, content)


def _about(row: Row) -> dict[str, Any]:
    """What a row is, without what was measured."""
    published = None if row.published is None else list(row.published)
    name = type(row.method).__name__
    method = {"name": name, **dataclasses.asdict(row.method)}
    return {
        "row": row.key,
        "definition": row.definition,
        "method": method,
        "published": published,
    }


def _kept(part: dict[str, Any]) -> dict[str, Any]:
    return {name: part.get(name) for name in ("row", "definition", "method", "published")}


def text(table: Published, done: Runs, seeds: Sequence[int]) -> str:
    """The table for a person: ours beside the published figures, with definition and strength."""
    head = ["setting", "method", "importance", "strength", "its mean", "maskcl", "published"]
    rows, time = [head], 0.0
    for row in table.rows:
        runs = [done[row.key][seed] for seed in seeds]
        time += sum(run.seconds for run in runs)
        penalty = row.method.strength > 0
        importance = sum(run.importance for run in runs) / len(runs)
        rows.append(
            [
                row.setting,
                row.label,
                row.definition,
                f"{row.method.strength:g}" if penalty else "-",
                scientific(importance) if penalty else "-",
                _figure(*mean_and_spread(runs)),
                "-" if row.published is None else _figure(*row.published),
            ]
        )
    protocol = "; ".join(f"{name.replace('_', ' ')} {v}" for name, v in table.protocol.items())
    some = f"seeds 0 to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    return "\n".join(
        [
            table.title,
            f"{protocol}; {some}, {seconds(time)}",
            "",
            grid(rows, words=3),
            "",
            *table.notes,
        ]
    )


def _figure(mean: float, spread: float) -> str:
    return f"{mean:.2f} ± {spread:.2f}"
