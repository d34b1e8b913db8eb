"""Several runs side by side, and the mean over runs that differ in the seed alone."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable

from maskcl.report.files import read_result
from maskcl.report.layout import Content
from maskcl.report.methods import LAYOUTS, layout_of
from maskcl.report.text import number, seconds

# What a run was, and what came out.
DESCRIBED = (
    "run", "scenario", "setting", "tasks", "method", "base", "model", "parameters", "epochs",
    "seed",
)  # fmt: skip
# Methods share columns.
_OWN = dict.fromkeys(
    m.column for layout in LAYOUTS.values() for m in layout.measures if m.column is not None
)
MEASURED = ("ACC", "BWT", *_OWN, "time")
COLUMNS = (*DESCRIBED, *MEASURED)

# What may differ between runs of one mean; a base may be pretrained with the run's own seed.
_FREE = ("seed", "out", "data", "config", "resume", "device", "base")
_FREE_IN_BASE = ("seed", "accuracy", "sha256")


def compare(directories: Iterable[str | os.PathLike[str]]) -> list[dict[str, str]]:
    """A row for each run, and after them one for each set of runs that differ in the seed alone.

    Values are text by the names of ``COLUMNS``, empty where a run's method has no such figure.
    Means are given with the standard deviation (n - 1) and the seeds.

    Raises:
        ReportError: a directory holds no readable result.
    """
    runs = [(os.fspath(directory), read_result(directory)) for directory in directories]
    rows = [_row(name, result) for name, result in runs]
    groups: dict[str, list[Content]] = {}
    for _, result in runs:
        groups.setdefault(_key(result), []).append(result)
    return rows + [_mean(results) for results in groups.values() if len(results) > 1]


def _row(name: str, result: Content) -> dict[str, str]:
    cut, config = result["scenario"], result["configuration"]
    row = dict.fromkeys(COLUMNS, "") | {
        "run": name,
        "scenario": cut["name"],
        "setting": cut["setting"],
        "tasks": str(cut["num_tasks"]),
        "method": result["method"],
        "base": str(result["base"]["source"]) if "base" in result else "",
        "model": str(config["model"]),
        "parameters": f"{result['parameters']:,}",
        "epochs": str(config["epochs"]),
        "seed": str(config["seed"]),
        "ACC": number(result["metrics"]["ACC"]["value"], 4),
        "BWT": number(result["metrics"]["BWT"]["value"], 4),
        "time": seconds(sum(result["seconds"])),
    }
    for measure in layout_of(result).measures:
        if measure.column is not None:
            row[measure.column] = measure.show(measure.value(result))
    return row


def _key(result: Content) -> str:
    config = {k: v for k, v in result["configuration"].items() if k not in _FREE}
    base = {k: v for k, v in result.get("base", {}).items() if k not in _FREE_IN_BASE}
    parts = [result["method"], config, result["scenario"]["classes"], base]
    return json.dumps(parts, sort_keys=True)


def _mean(results: list[Content]) -> dict[str, str]:
    row = _row("", results[0])
    seeds = sorted(result["configuration"]["seed"] for result in results)
    row["run"] = f"mean ± sd of {len(results)}"
    row["seed"] = " ".join(map(str, seeds))
    for name in ("ACC", "BWT"):
        values = [result["metrics"][name]["value"] for result in results]
        if None in values:
            row[name] = number(None, 4)
        else:
            spread = statistics.stdev(values)
            row[name] = f"{number(statistics.mean(values), 4)} ± {spread:.4f}"
    for measure in layout_of(results[0]).measures:
        if measure.column is not None:
            known = [v for r in results if (v := measure.value(r)) is not None]
            row[measure.column] = measure.show(statistics.mean(known) if known else None)
    row["time"] = seconds(statistics.mean(sum(r["seconds"]) for r in results))
    return row
