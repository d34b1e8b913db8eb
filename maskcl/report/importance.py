"""The report of a run with a quadratic penalty (MAS, EWC): importance and drift by parameter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskcl.report.drawing import (
    MOST_LINES,
    WIDTH,
    layer_name,
    legend,
    new_figure,
    shorten,
    task_axis,
)
from maskcl.report.heat_maps import layer_map
from maskcl.report.layout import Content, Layout, Measure, Picture, Table, has
from maskcl.report.scores import score_name
from maskcl.report.svg import hover
from maskcl.report.text import percent, scientific
from maskcl.report.theme import SERIES, SHADES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


HELD = ("regularised", "importance", "drift")


def mean_importance(result: Content, task: int = -1) -> float | None:
    """Mean over all regularised elements after a task, from 0; None where nothing is."""
    return _together(result["importance"], result["regularised"], task, power=1)


def mean_drift(result: Content, task: int = -1) -> float | None:
    """Root mean square, over the same elements, of their distance from their anchors.

    Taken at the task's end; None for the first task, before which nothing was anchored.
    """
    return _together(result["drift"], result["regularised"], task, power=2)


def strength(result: Content) -> float:
    """What the penalty is multiplied by; it belongs to the importance's definition."""
    return float(result["configuration"]["strength"])


def _plain(value: float | None) -> str:
    return "n/a" if value is None else f"{value:g}"


def _together(
    history: list[dict[str, float | None]], sizes: dict[str, int], task: int, power: int
) -> float | None:
    """Power mean of one row of a history, every element of a parameter counted."""
    after = {name: value for name, value in history[task].items() if value is not None}
    count = sum(sizes[name] for name in after)
    if count == 0:
        return None
    return float((sum(v**power * sizes[name] for name, v in after.items()) / count) ** (1 / power))


def importance_by_layer(result: Content) -> Figure:
    """Heat map of the mean importance, as log10: a row a parameter, the last one all of them."""
    values = _rows(result, "importance")
    # A dead layer's 0 has no logarithm: its cell stays white.
    shown = np.full_like(values, np.nan)
    np.log10(values, out=shown, where=values > 0)
    known = shown[np.isfinite(shown)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    figure, axes = layer_map(
        shown, _labels(result), low=low, high=high, label="log10 of the mean importance", digits=1
    )
    axes.set_xlabel("after training task")
    return figure


def drift_by_layer(result: Content) -> Figure:
    """Heat map of the drift: a row a parameter, the last one all of them."""
    values = 1000 * _rows(result, "drift")
    high = float(np.nanmax(values, initial=0.0))
    figure, axes = layer_map(
        values, _labels(result), low=0, high=high, label="drift in thousandths", digits=1
    )
    axes.set_xlabel("at the end of task")
    return figure


def _rows(result: Content, key: str) -> NDArray[np.float64]:
    """[parameters + 1, tasks], NaN where nothing was measured."""
    names, history = list(result["regularised"]), result[key]
    mean = mean_importance if key == "importance" else mean_drift
    rows = [[after.get(name) for after in history] for name in names]
    rows.append([mean(result, task) for task in range(len(history))])
    return np.array(rows, dtype=np.float64)


def _labels(result: Content) -> list[str]:
    sizes: dict[str, int] = result["regularised"]
    each = [f"{shorten(layer_name(name), 30)}  ({size:,})" for name, size in sizes.items()]
    return [*each, f"all together  ({sum(sizes.values()):,})"]


def learned_and_kept(result: Content) -> Figure:
    """For each task its score when just trained and at the end, side by side."""
    matrix = np.array(result["accuracy"], dtype=np.float64)
    trained = [t for t in range(len(matrix)) if not np.isnan(matrix[t, t])]
    last = trained[-1] if trained else 0
    figure, axes = new_figure(WIDTH, 3.2)
    for aside, color, name, scores in (
        (-0.2, SHADES[1], "just trained", matrix.diagonal()),
        (0.2, SERIES[0], "at the end", matrix[last]),
    ):
        heights = [float(scores[task]) for task in trained]
        if len(trained) > MOST_LINES:
            axes.plot(trained, heights, color=color, label=name)
            continue
        places = [task + aside for task in trained]
        bars = axes.bar(places, heights, 0.38, color=color, label=name)
        for task, height, bar in zip(trained, heights, bars.patches, strict=True):
            hover(bar, [f"task {task} {name}: {height:.4f}"])
    axes.set_ylim(min(0.0, float(np.nanmin(matrix, initial=0))), 1.02)
    axes.set_ylabel(f"test {score_name(result)}")
    task_axis(axes, len(matrix), "task")
    legend(axes)
    return figure


def by_parameter(result: Content) -> list[list[str]]:
    """Heading, a row for each regularised parameter, and all of them together."""
    sizes, last = result["regularised"], result["importance"][-1]
    drift = result["drift"][-1]
    total = sum(sizes[name] * (value or 0.0) for name, value in last.items())
    rows = [["parameter", "elements", "mean importance", "share of the sum", "drift"]]
    for name, size in sizes.items():
        mean = last.get(name)
        share = None if mean is None or total == 0 else mean * size / total
        cells = [scientific(mean), percent(share), scientific(drift.get(name))]
        rows.append([layer_name(name), f"{size:,}", *cells])
    if len(sizes) > 1:
        together = scientific(mean_importance(result)), scientific(mean_drift(result))
        share = percent(1.0 if total and math.isfinite(total) else None)
        rows.append(["all", f"{sum(sizes.values()):,}", together[0], share, together[1]])
    return rows


def origin(result: Content) -> str:
    """What is regularised, and how strongly, in a sentence."""
    if not has(result, ("regularised", "parameters")):
        return ""  # of a run on its way
    config, sizes = result["configuration"], result["regularised"]
    part = sum(sizes.values()) / result["parameters"]
    definition = ", ".join(
        f"{name} {config[name]}" for name in ("reduction", "norm", "labels") if name in config
    )
    return (
        f"Strength {config['strength']:g} with an importance of {definition}; "
        f"{sum(sizes.values()):,} parameters ({percent(part)}) are held, none is frozen: "
        "what a task forgets is in the matrix of scores"
    )


def layout(title: str) -> Layout:
    """The layout of a method with a quadratic penalty."""
    return Layout(
        title=title,
        measures=(
            Measure("strength", strength, _plain, column="strength", needs=("configuration",)),
            # No column: means of different definitions do not compare.
            Measure("mean importance", mean_importance, scientific, needs=HELD),
            Measure("drift in the last task", mean_drift, scientific, column="drift", needs=HELD),
        ),
        origin=origin,
        beside=LEARNED,
        pictures=(IMPORTANCE, DRIFT),
        tables=(PARAMETERS,),
    )


LEARNED = Picture(
    "learned",
    "Learned and kept",
    "Each task's score when it was just trained, and after the last task: the difference "
    "is what was forgotten.",
    learned_and_kept,
)
IMPORTANCE = Picture(
    "importance",
    "Importance by layer over tasks",
    "Mean over a parameter's elements of the importance that later tasks are held by, as the "
    "power of ten. In brackets the number of elements; the last row counts every element once. "
    "Means of one definition (reduction, norm) compare with each other, not with another's.",
    importance_by_layer,
    needs=HELD,
)
DRIFT = Picture(
    "drift",
    "Drift by layer over tasks",
    "How far from its anchor, where the tasks before hold it, a parameter was at each task's end: "
    "root mean square over its elements, in thousandths. Nothing was anchored before the first.",
    drift_by_layer,
    needs=HELD,
)
PARAMETERS = Table(
    "Importance by parameter",
    "After the last task. Share: of the sum of all importances. Drift: root mean square of the "
    "distance from the anchors, at the end of the last task.",
    by_parameter,
    needs=HELD,
)

MAS = layout("MAS")
EWC = layout("EWC")
