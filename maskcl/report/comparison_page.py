"""One page that compares runs, and the figures in it as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maskcl.files import new_folder
from maskcl.report.compare import COLUMNS, rows_of
from maskcl.report.comparison_figures import (
    difference,
    differences,
    limits,
    matrix_of_group,
    mean_of,
    means_over_time,
    spread_of,
)
from maskcl.report.drawing import style
from maskcl.report.groups import Group, Run, differing, grouped, repeats, settings_of
from maskcl.report.html import (
    Row,
    definitions,
    details,
    document,
    escape,
    scrolling,
    section,
    table_section,
)
from maskcl.report.scores import DEFINITIONS, score_name
from maskcl.report.svg import svg
from maskcl.report.text import number
from maskcl.scenarios.describing import summary
from maskcl.text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, RUNS, TASKS = "report.html", "runs.csv", "tasks.csv"
# More than these are in the tables and in the CSV alone.
MOST_MATRICES, MOST_ROWS = 12, 100


def write_comparison(runs: Sequence[Run], folder: Path) -> Path:
    """Make a folder with report.html, runs.csv and tasks.csv; returns the page's path.

    Args:
        runs: as `groups.read_runs` gives them.
        folder: new; there is all of it or nothing.

    Raises:
        ImportError: matplotlib is missing.
        OSError: the folder is there already, or cannot be written.
    """
    groups = grouped(runs)
    text = comparison_page(runs, groups)
    with new_folder(folder) as made:
        (made / PAGE).write_text(text, encoding="utf-8")
        (made / RUNS).write_text(_runs_csv(runs, groups), encoding="utf-8")
        (made / TASKS).write_text(_tasks_csv(runs, groups), encoding="utf-8")
    return folder / PAGE


def comparison_page(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """The page: what differs, all figures, then for each scenario curves, matrices, differences."""
    names = list(dict.fromkeys(str(run.result["scenario"]["name"]) for run in runs))
    title = f"{len(runs)} runs on {', '.join(names)}"
    notes = "".join(f'<section class="note">{escape(said)}.</section>' for said in repeats(runs))
    lead = "Runs that differ in the seed alone are one group: mean ± standard deviation (n - 1)."
    body = [f"<h1>{escape(title)}</h1><p>{lead}</p>{notes}", *_settings(groups), _figures(runs)]
    for index, part in enumerate(_by_scenario(groups)):
        body.append(_scenario(part, f"c{index}"))
    return document(title, "".join([*body, _glossary()]))


def _settings(groups: Sequence[Group]) -> list[str]:
    differ, same = differing(groups)
    found = [settings_of(group) for group in groups]
    seeds = ["seeds", *(" ".join(str(run.seed) for run in group.runs) for group in groups)]
    rows = [["setting", *(group.label for group in groups)], seeds]
    rows += [[name, *(_plain(s.get(name)) for s in found)] for name in differ]
    parts = [table_section("Settings that differ", "A column a group.", rows)]
    # What no group names, None, is the same as what a group lacks.
    known = {name: found[0][name] for name in same if found[0].get(name) is not None}
    return [*parts, details("Settings that are the same in all groups", known)]


def _figures(runs: Sequence[Run]) -> str:
    rows = rows_of(runs)
    columns = [name for name in COLUMNS if any(row[name] for row in rows)]
    return table_section(
        "Figures",
        "A row a run, then a row a group.",
        [columns, *([r[c] for c in columns] for r in rows)],
    )


def _by_scenario(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups whose scores are of the same tasks."""
    parts: dict[str, list[Group]] = {}
    for group in groups:
        cut = group.first["scenario"]
        key = repr((cut["name"], cut["setting"], cut["classes"]))
        parts.setdefault(key, []).append(group)
    return list(parts.values())


def _scenario(groups: Sequence[Group], name: str) -> str:
    cut = groups[0].first["scenario"]
    head = f"<h2>{escape(cut['name'])}</h2><p>{escape(summary(cut))}.</p>"
    over_time = _picture(
        f"{name}-time", "Mean score over time",
        "Mean over the tasks trained so far; shaded from the least to the largest of the seeds.",
        partial(means_over_time, groups),
    )  # fmt: skip
    pictures = [over_time]
    if len(groups) > 1:
        told = f"Final score minus that of {groups[0].label}; lines reach one standard deviation."
        pictures.append(
            _picture(f"{name}-apart", "Difference by task", told, partial(differences, groups))
        )
    low, high = limits(groups)
    for index, group in enumerate(groups[:MOST_MATRICES]):
        seeds = len(group.runs)
        told = "The matrix of scores." if seeds == 1 else f"Mean of {seeds} matrices of scores."
        draw = partial(matrix_of_group, group, low, high)
        pictures.append(_picture(f"{name}-m{index}", group.label, told, draw))
    return f'{head}<div class="pair">{"".join(pictures)}</div>{_by_task(groups)}'


def _picture(name: str, title: str, caption: str, draw: Callable[[], Figure]) -> str:
    import matplotlib as mpl

    with mpl.rc_context(style()):  # type: ignore[arg-type]
        element = svg(draw(), name, f"{title}. {caption}")
    return section(title, caption, scrolling(element, title))


def _by_task(groups: Sequence[Group]) -> str:
    """Final scores by task, and how far they are from the first group's."""
    first, rest = groups[0], groups[1:]
    tasks = len(first.first["accuracy"])
    head = [
        "task",
        *(group.label for group in groups),
        *(f"{g.label} minus {first.label}" for g in rest),
    ]
    finals = [np.stack(list(group.finals.values())) for group in groups]
    columns = [_shown(mean_of(f), spread_of(f), len(f) > 1) for f in finals]
    for group in rest:
        mean, spread, seeds = difference(first, group)
        many = len(seeds) > 1 or (not seeds and len(first.runs) + len(group.runs) > 2)
        columns.append(_shown(mean, spread, many, sign=True))
    rows: list[Row] = [[str(task), *(column[task] for column in columns)] for task in range(tasks)]
    hidden = tasks - MOST_ROWS
    caption = "Differences are of runs with the same seed, where both groups have it."
    if hidden > 0:
        caption += f" The first {MOST_ROWS} of {tasks} tasks; {TASKS} has all."
    name = f"Final {score_name(first.first)} by task"
    return table_section(name, caption, [head, *rows[:MOST_ROWS]])


def _shown(mean: Any, spread: Any, many: bool, *, sign: bool = False) -> list[str]:
    found = []
    for value, width in zip(mean, spread, strict=True):
        text = number(float(value), 4)
        text = f"+{text}" if sign and value > 0 else text
        found.append(f"{text} ± {width:.4f}" if many and value == value else text)
    return found


def _glossary() -> str:
    rows = [(name, "", escape(meaning)) for name, meaning in DEFINITIONS.items()]
    return section("What the metrics are", "T tasks, numbered from 0.", definitions(rows))


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _labels(groups: Sequence[Group]) -> dict[str, str]:
    return {run.name: group.label for group in groups for run in group.runs}


def _runs_csv(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """A row a run: its group, its settings, its metrics."""
    labels = _labels(groups)
    keys = list(dict.fromkeys(k for run in runs for k in run.result["configuration"]))
    metrics = list(dict.fromkeys(m for run in runs for m in run.result["metrics"]))
    head = ["run", "group", "same_as", "method", "scenario", "setting", "metric", "parameters",
            "seconds", *metrics, *(f"configuration.{key}" for key in keys)]  # fmt: skip
    rows = []
    for run in runs:
        result, cut = run.result, run.result["scenario"]
        values = [result["metrics"].get(name, {}).get("value") for name in metrics]
        rows.append([
            run.name, labels.get(run.name, labels.get(run.same_as, "")), run.same_as,
            result["method"], cut["name"], cut["setting"], cut.get("metric", "accuracy"),
            result.get("parameters"), sum(result["seconds"]), *values,
            *(_plain(result["configuration"].get(key)) for key in keys),
        ])  # fmt: skip
    return _csv([head, *rows])


def _tasks_csv(runs: Sequence[Run], groups: Sequence[Group]) -> str:
    """A row for each run and task: just trained, at the end, and the difference."""
    labels = _labels(groups)
    rows: list[list[Any]] = [
        ["run", "group", "method", "seed", "task", "just_trained", "final", "difference"]
    ]
    for run in runs:
        if run.same_as:
            continue
        matrix = run.matrix
        for task in range(len(matrix)):
            learned, kept = float(matrix[task, task]), float(matrix[-1, task])
            scores = [v if v == v else None for v in (learned, kept, kept - learned)]
            rows.append([run.name, labels[run.name], run.result["method"], run.seed, task, *scores])
    return _csv(rows)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    told = [[printable(v) if isinstance(v, str) else v for v in row] for row in rows]
    csv.writer(buffer, lineterminator="\n").writerows(told)
    return buffer.getvalue()
