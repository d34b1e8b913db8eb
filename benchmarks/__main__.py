"""Run the benchmarks and print one table: `python -m benchmarks [OPTIONS] [pytest's arguments]`.

Each row is a median of one process run; "ratio" is its time over maskcl's, "of memcpy" the rate at
which the op's least bytes moved over the rate of a copy in the same group. --save writes the rows,
with machine, torch, dtype, shape, commit and date, to benchmarks/results/; groups that this run did
not time keep the rows that they have there.

`--save --minutes 4` times what the table does not have of this commit yet, and begins no group
after four minutes: the same command again goes on, until it says that nothing is left. The commit
is the last one that changed code.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import platform
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import speed_page
from benchmarks.commits import commit
from benchmarks.pieces import Piece

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = (
    "group",
    "name",
    "median_ms",
    "p25_ms",
    "p75_ms",
    "ratio",
    "gb_per_s",
    "of_memcpy",
    "test",
)
RESULTS = ROOT / "benchmarks/results"


def processor() -> str:
    """The name of the device under test."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def rows_of(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a benchmark, with its ratios inside its group."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in document["benchmarks"]:
        stats, info = entry["stats"], entry["extra_info"]
        seconds = stats["median"]
        rate = info["floor"] / seconds / 1e9 if info["floor"] else None
        groups[entry["group"]].append(
            {
                "group": entry["group"],
                "name": info["name"],
                "test": entry["fullname"],
                "median_ms": seconds * 1e3,
                "p25_ms": stats["q1"] * 1e3,
                "p75_ms": stats["q3"] * 1e3,
                "gb_per_s": rate,
            }
        )
    for rows in groups.values():
        ours = next((r["median_ms"] for r in rows if r["name"] == "maskcl"), None)
        copy = next((r["median_ms"] for r in rows if r["name"] == "memcpy"), None)
        for row in rows:
            row["ratio"] = row["median_ms"] / ours if ours else None
            row["of_memcpy"] = copy / row["median_ms"] if copy else None
    return [row for rows in groups.values() for row in rows]


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table, a block a group."""
    group = None
    for row in rows:
        if row["group"] != group:
            group = row["group"]
            print(
                f"\n{group}\n  {'':32}{'ms':>10}{'p25':>10}{'p75':>10}{'x ours':>9}{'of copy':>11}"
            )
        ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
        share = f"{row['of_memcpy']:.0%}" if row["of_memcpy"] else ""
        numbers = "".join(f"{row[k]:10.4f}" for k in ("median_ms", "p25_ms", "p75_ms"))
        print(f"  {row['name']:32}{numbers}{ratio:>9}{share:>11}")


def earlier(path: Path, groups: set[str]) -> list[dict[str, str]]:
    """The rows of a saved table that are not of these groups."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["group"] not in groups]


def facts() -> dict[str, Any]:
    """What the rows of one run have in common."""
    return {
        "device": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def table() -> Path:
    """Where this machine's rows are kept."""
    return RESULTS / f"{'cuda' if torch.cuda.is_available() else 'cpu'}.csv"


def save(rows: list[dict[str, Any]], known: dict[str, Any], device: str) -> None:
    """Put the rows into benchmarks/results, in the place of those of the same groups."""
    target = ROOT / "benchmarks/results" / f"{device}.csv"
    target.parent.mkdir(exist_ok=True)
    kept = earlier(target, {row["group"] for row in rows})
    with target.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *known])
        writer.writeheader()
        writer.writerows(kept)
        for row in rows:
            numbers = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({**numbers, **known})
    print(f"\nsaved to {target.relative_to(ROOT)}")


def done_already(path: Path) -> set[str]:
    """The tests whose rows are of this commit already; none where the tree differs from it."""
    here = commit()
    if not path.exists() or here.endswith("+"):
        return set()
    with path.open(newline="") as file:
        return {row.get("test") or "" for row in csv.DictReader(file) if row["commit"] == here}


def main(arguments: list[str]) -> int:
    """Run, print, and with --save keep the rows."""
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--minutes", type=float)
    given, rest = parser.parse_known_args(arguments)
    seconds = float("inf") if given.minutes is None else 60 * given.minutes
    done = done_already(table()) if given.minutes is not None else set()
    piece = Piece(done, seconds)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "benchmarks.json"
        options = ["-q", "-o", "python_files=bench_*.py", "--benchmark-disable-gc"]
        options += [
            "--benchmark-min-rounds=7",
            "--benchmark-max-time=0.5",
            "--benchmark-columns=median",
            f"--rootdir={ROOT}",
        ]
        tests = rest or [str(ROOT / "benchmarks")]
        status = pytest.main(
            [*options, f"--benchmark-json={output}", "-p", "no:cacheprovider", *tests],
            plugins=[piece],
        )
        if not output.exists() or not output.stat().st_size:
            print("nothing is left to time")
            return 0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else int(status)
        rows = rows_of(json.loads(output.read_text()))
    known = facts()
    print("\n" + ", ".join(f"{k} {v}" for k, v in known.items()))
    show(rows)
    if given.save:
        save(rows, known, table().stem)
        speed_page.write()
    print("there is more: the same command goes on" if piece.is_over else "")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
