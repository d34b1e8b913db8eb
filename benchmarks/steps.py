"""The table of training steps, `python -m benchmarks.steps [--write] [--minutes 4] [PIECE ...]`.

Each row is the second task's step of a method, ours, written carefully in torch, or of a package
that can be imported here, and its ratio to the same network's unmasked step, torch's fastest of
fused and foreach; all steps of a setting are taken in turn in one process, medians. `maskcl bench
steps` times one setting. hat-cl and CLArena themselves are timed where their packages `hat` and
`clarena` can be imported, from a checkout on PYTHONPATH for one; else their rows say so.

--write puts the rows into benchmarks/results/steps.csv, in the place of those of the same settings,
and the tables into docs/benchmarks.md. With --minutes, settings that the table has of this commit
are left out, and none is begun after so many minutes: the same command again goes on. The pieces
are in the order of what matters.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import functools
import importlib
import platform
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks import speed_page
from benchmarks.commits import ROOT, commit
from benchmarks.step_pieces import MIDDLE, SMALL, pieces
from benchmarks.surfaces import clarena_step, hat_cl_step
from maskcl.bench import Setting, StepTimes, machine, time_steps
from maskcl.bench.networks import network

TABLE = ROOT / "benchmarks/results/steps.csv"
COMMAND = "python -m benchmarks.steps --write"
FEWEST = 11  # of five the median is a moment's: a shared machine is at times 1.5 times as slow
PEERS = {"hat-cl": "hat", "CLArena": "clarena"}
_KEY = tuple(field.name for field in dataclasses.fields(Setting))
COLUMNS = [*_KEY, "method", "whose", "us", "us_p25", "us_p75", "of_unmasked", "note"]
KNOWN = ["device", "torch", "python", "commit", "date", "command"]
Row = dict[str, Any]


def measured(setting: Setting) -> list[Row]:
    """The rows of one setting."""
    found, absent = timed(setting)
    spreads = {key: tuple(spread) for key, spread in found.times.items()}
    key = dataclasses.asdict(setting)
    rows = [
        {
            **key,
            "method": method,
            "whose": whose,
            **dict(zip(("us", "us_p25", "us_p75"), (f"{us:.1f}" for us in spread), strict=True)),
            "of_unmasked": f"{found.ratio(method, whose):.3f}",
            "note": "" if whose == "maskcl" or not method else beside(found, method, whose),
        }
        for (method, whose), spread in spreads.items()
    ]
    return rows + [
        {**key, "method": "HAT", "whose": whose, "note": why} for whose, why in absent.items()
    ]


def timed(setting: Setting) -> tuple[StepTimes, dict[str, str]]:
    """Ours, careful eager and, on MLPs, those of the packages that are here."""
    torch.manual_seed(0)
    others, absent = {}, {}
    if setting.network[0].isdigit() and not setting.compiled:
        made = network(setting.network, setting.batch)
        widths = [int(width) for width in setting.network.split("-")]
        optimizer_of = functools.partial(setting.optimizer_of, fused=True)
        for name, step_of in (("hat-cl", hat_cl_step), ("CLArena", clarena_step)):
            try:
                importlib.import_module(PEERS[name])
            except ImportError as error:
                absent[name] = f"not measured: {error}"
                continue
            step = step_of(PEERS[name], widths, made.inputs[0], made.targets, optimizer_of)
            others["HAT", name] = step
    seconds = seconds_of(setting)
    return time_steps(setting, seconds=seconds, others=others, fewest=FEWEST), absent


def seconds_of(setting: Setting) -> float:
    """Of the rounds, of which there are ``FEWEST`` whatever this says."""
    return 3.0 if setting.network in (SMALL[0], MIDDLE[0]) else 5.0


def beside(found: StepTimes, method: str, whose: str) -> str:
    """In words where another's step is faster than ours."""
    ours, theirs = (found.times[method, name].median for name in ("maskcl", whose))
    return f"faster than maskcl, {theirs / ours:.2f} of its time" if theirs < ours else ""


def read() -> list[Row]:
    """The rows that are kept."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def key_of(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in _KEY)


def write(rows: list[Row], setting: Setting, kept: list[Row]) -> list[Row]:
    """Keep the rows in the place of those of their setting; returns all, in the pieces' order."""
    order = [
        tuple(str(value) for value in dataclasses.astuple(other))
        for settings in pieces().values()
        for other in settings
    ]
    here = tuple(str(value) for value in dataclasses.astuple(setting))
    every = [row for row in kept if key_of(row) != here] + rows
    every = sorted((r for r in every if key_of(r) in order), key=lambda r: order.index(key_of(r)))
    TABLE.parent.mkdir(exist_ok=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *KNOWN])
        writer.writeheader()
        writer.writerows(every)
    return every


def facts() -> Row:
    """What the rows of a run have in common."""
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    values = machine(), torch.__version__, platform.python_version(), commit(), today, COMMAND
    return dict(zip(KNOWN, values, strict=True))


def to_do(chosen: list[str], kept: list[Row], known: Row, is_piece: bool) -> Iterator[Setting]:
    """Settings that are asked for, once each; of a piece those that are not there yet."""
    there = {key_of(row) for row in kept if row["commit"] == known["commit"]}
    is_dirty = known["commit"].endswith("+")
    seen = set()
    for setting in (s for name in chosen for s in pieces()[name]):
        key = tuple(str(value) for value in dataclasses.astuple(setting))
        if key in seen or (is_piece and key in there and not is_dirty):
            continue
        seen.add(key)
        yield setting


def main() -> None:
    """Print a block for each setting."""
    parser = argparse.ArgumentParser("python -m benchmarks.steps", description=__doc__)
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=", ".join(pieces()))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--minutes", type=float)
    given = parser.parse_args()
    if wrong := [name for name in given.pieces if name not in pieces()]:
        parser.error(f"unknown piece {wrong[0]}: known are {', '.join(pieces())}")
    known, kept, start = facts(), read(), time.monotonic()
    print(", ".join(f"{name} {value}" for name, value in known.items()))
    settings = list(to_do(given.pieces or list(pieces()), kept, known, given.minutes is not None))
    for number, setting in enumerate(settings):
        if given.minutes is not None and time.monotonic() - start > 60 * given.minutes:
            print(f"{len(settings) - number} settings are left: the same command goes on")
            break
        rows = measured(setting)
        show(rows, setting)
        if given.write:
            kept = write([{**row, **known} for row in rows], setting, kept)
    if given.write:
        speed_page.write()


def show(rows: list[Row], setting: Setting) -> None:
    """Print a setting's rows."""
    print("\n" + ", ".join(f"{name} {getattr(setting, name)}" for name in _KEY))
    for row in rows:
        name = ", ".join(part for part in (row["method"], row["whose"]) if part)
        print(
            f"  {name:26}{row.get('us', ''):>12}{row.get('of_unmasked', ''):>8}  {row['note']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
