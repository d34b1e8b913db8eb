"""Several runs side by side, and the mean over runs that differ in the seed alone."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable
from typing import Any

from maskcl.report.files import read_result
from maskcl.report.page import mean_share, number, percent, seconds

COLUMNS = (
    "run", "scenario", "setting", "tasks", "method", "model", "parameters", "epochs", "seed",
    "ACC", "BWT", "used", "protected", "time",
)  # fmt: skip

# What may differ between runs of one mean.
_FREE = ("seed", "out", "data", "config", "resume", "device")


def compare(directories: Iterable[str | os.PathLike[str]]) -> list[dict[str, str]]:
    """A row for each run, and after them one for each set of runs that differ in the seed alone.

    Values are text by the names of ``COLUMNS``. Means are given with the standard deviation
    (n - 1) and the seeds.

    Raises:
        ReportError: a directory holds no readable result.
    """
    runs = [(os.fspath(directory), read_result(directory)) for directory in directories]
    rows = [_row(name, result) for name, result in runs]
    groups: dict[str, list[dict[str, Any]]] = {}
    for _, result in runs:
        groups.setdefault(_key(result), []).append(result)
    return rows + [_mean(results) for results in groups.values() if len(results) > 1]


def _row(name: str, result: dict[str, Any]) -> dict[str, str]:
    cut, config = result["scenario"], result["configuration"]
    return {
        "run": name,
        "scenario": cut["name"],
        "setting": cut["setting"],
        "tasks": str(cut["num_tasks"]),
        "method": result["method"],
        "model": str(config["model"]),
        "parameters": f"{result['parameters']:,}",
        "epochs": str(config["epochs"]),
        "seed": str(config["seed"]),
        "ACC": number(result["metrics"]["ACC"]["value"], 4),
        "BWT": number(result["metrics"]["BWT"]["value"], 4),
        "used": percent(mean_share(result["capacity"])),
        "protected": percent(result["protected_share"]),
        "time": seconds(sum(result["seconds"])),
    }


def _key(result: dict[str, Any]) -> str:
    config = {k: v for k, v in result["configuration"].items() if k not in _FREE}
    return json.dumps([result["method"], config, result["scenario"]["classes"]], sort_keys=True)


def _mean(results: list[dict[str, Any]]) -> dict[str, str]:
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
    row["used"] = percent(statistics.mean(mean_share(r["capacity"]) or 0.0 for r in results))
    row["protected"] = percent(statistics.mean(r["protected_share"] for r in results))
    row["time"] = seconds(statistics.mean(sum(r["seconds"]) for r in results))
    return row
