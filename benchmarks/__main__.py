"""Run the benchmarks and print one table: `python -m benchmarks [--save] [pytest's arguments]`.

Each row is a median of one process run; "ratio" is its time over maskcl's, "of memcpy" the rate at
which the op's least bytes moved over the rate of a copy in the same group. --save writes the rows,
with machine, torch, dtype, shape and commit, to benchmarks/results/; groups that this run did not
time keep the rows that they have there.
"""

from __future__ import annotations

import csv
import json
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("group", "name", "median_ms", "p25_ms", "p75_ms", "ratio", "gb_per_s", "of_memcpy")


def processor() -> str:
    """The name of the device under test."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The checkout's commit, with + where the tree differs from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    except OSError:  # no git
        return "unknown"
    return run.stdout.strip() or "unknown"


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
    }


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


def main(arguments: list[str]) -> int:
    """Run, print, and with --save keep the rows."""
    rest = [a for a in arguments if a != "--save"] or [str(ROOT / "benchmarks")]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "benchmarks.json"
        options = ["-q", "-o", "python_files=bench_*.py", "--benchmark-disable-gc"]
        options += [
            "--benchmark-min-rounds=15",
            "--benchmark-max-time=1.5",
            "--benchmark-columns=median",
        ]
        status = pytest.main(
            [*options, f"--benchmark-json={output}", "-p", "no:cacheprovider", *rest]
        )
        if not output.exists():
            return int(status)
        rows = rows_of(json.loads(output.read_text()))
    known = facts()
    print("\n" + ", ".join(f"{k} {v}" for k, v in known.items()))
    show(rows)
    if "--save" in arguments:
        save(rows, known, "cuda" if torch.cuda.is_available() else "cpu")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
