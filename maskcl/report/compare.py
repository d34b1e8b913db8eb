"""Several runs side by side, and the mean over runs that differ in the seed alone."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence

from maskcl.report.files import whole
from maskcl.report.groups import Run, grouped, read_runs
from maskcl.report.layout import Content
from maskcl.report.methods import LAYOUTS, layout_of
from maskcl.report.scores import metric_of
from maskcl.report.text import number, seconds

# What a run was, and what came out.
DESCRIBED = (
    "run", "scenario", "setting", "tasks", "metric", "method", "base", "model", "parameters",
    "epochs", "seed",
)  # fmt: skip
# Methods share columns.
_OWN = dict.fromkeys(
    m.column for layout in LAYOUTS.values() for m in layout.measures if m.column is not None
)
# Where there are references, or scores before training; empty elsewhere.
_MAYBE = ("FWT", "INT", "FTS")
MEASURED = ("ACC", "BWT", *_MAYBE, *_OWN, "time")
COLUMNS = (*DESCRIBED, *MEASURED)


def compare(directories: Iterable[str | os.PathLike[str]]) -> list[dict[str, str]]:
    """A row for each run, and after them one for each set of runs that differ in the seed alone.

    Values are text by the names of ``COLUMNS``, empty where a run's method has no such figure.
    Means are given with the standard deviation (n - 1) and the seeds.

    Raises:
        ReportError: a directory holds no readable result, or scores of one run are another metric
            than those of another: no mean or order of them says anything.
    """
    return rows_of(read_runs(directories))


def rows_of(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The same of runs that are read; one that is given twice counts once in a mean."""
    rows = []
    for run in runs:
        with whole(run.name):
            rows.append(_row(run.name, run.result))
    means = [[run.result for run in group.runs] for group in grouped(runs) if len(group.runs) > 1]
    return rows + [_mean(results) for results in means]


def _row(name: str, result: Content) -> dict[str, str]:
    cut, config = result["scenario"], result["configuration"]
    row = dict.fromkeys(COLUMNS, "") | {
        "run": name,
        "scenario": cut["name"],
        "setting": cut["setting"],
        "tasks": str(cut["num_tasks"]),
        "metric": metric_of(result),
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
    for metric in _MAYBE:
        value = result["metrics"].get(metric, {}).get("value")
        row[metric] = "" if value is None else number(value, 4)
    for measure in layout_of(result).measures:
        if measure.column is not None:
            row[measure.column] = measure.text(result)
    return row


def _mean(results: list[Content]) -> dict[str, str]:
    row = _row("", results[0])
    seeds = sorted(result["configuration"]["seed"] for result in results)
    row["run"] = f"mean ± sd of {len(results)}"
    row["seed"] = " ".join(map(str, seeds))
    for name in ("ACC", "BWT", *_MAYBE):
        values = [result["metrics"].get(name, {}).get("value") for result in results]
        if None in values:
            row[name] = "" if name in _MAYBE else number(None, 4)
        else:
            spread = statistics.stdev(values)
            row[name] = f"{number(statistics.mean(values), 4)} ± {spread:.4f}"
    for measure in layout_of(results[0]).measures:
        if measure.column is not None:
            known = [v for r in results if (v := measure.of(r)) is not None]
            row[measure.column] = measure.show(statistics.mean(known) if known else None)
    row["time"] = seconds(statistics.mean(sum(r["seconds"]) for r in results))
    return row
