"""The pictures that compare groups of runs on one scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskcl.report.drawing import (
    MARKERS,
    MOST_LINES,
    WIDTH,
    legend,
    new_figure,
    plot_lines,
    score_panels,
    shorten,
    task_axis,
)
from maskcl.report.figures import mean_curve
from maskcl.report.groups import Group
from maskcl.report.heat_maps import square, square_map
from maskcl.report.scores import chance_of, score_limits, score_name
from maskcl.report.svg import hover
from maskcl.report.theme import MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def means_over_time(groups: Sequence[Group]) -> Figure:
    """A line a group: the mean score on the tasks so far, its runs' extremes shaded.

    Where all are close to each other they are drawn once more, larger, on an axis of theirs.
    """
    curves = [np.stack([mean_curve(run.matrix) for run in group.runs]) for group in groups]
    values = np.concatenate([curve.ravel() for curve in curves])
    ends = score_limits(groups[0].first, values)
    tasks = len(groups[0].first["accuracy"])
    panels = score_panels(values, ends, tasks, lambda axes: _means(axes, groups, curves))
    panels[-1].set_ylabel(f"mean test {score_name(groups[0].first)} so far")
    legend(panels[-1])
    return panels[-1].figure  # type: ignore[return-value]


def _means(axes: Axes, groups: Sequence[Group], curves: Sequence[NDArray[np.float64]]) -> None:
    steps = list(range(curves[0].shape[1]))
    for index, curve in enumerate(curves):
        if len(curve) > 1:
            color = SERIES[index % len(SERIES)]
            axes.fill_between(steps, curve.min(0), curve.max(0), color=color, alpha=0.18)
    lines = [(g.label, steps, mean_of(c).tolist()) for g, c in zip(groups, curves, strict=True)]
    name = score_name(groups[0].first)
    plot_lines(axes, lines, words=f"{{name}} after task {{task}}, mean {name}", digits=4)
    if (chance := chance_of(groups[0].first)) is not None:
        mean = np.cumsum(chance) / (np.arange(len(chance)) + 1)
        axes.plot(mean, color=MUTED, linewidth=1, label="chance")


def matrix_of_group(group: Group, low: float, high: float) -> Figure:
    """Heat map of the mean of a group's matrices."""
    mean = mean_of(group.matrices)
    figure, axes = square(len(mean))
    square_map(
        axes, mean, low=low, high=high, label=score_name(group.first), digits=3,
        words="after task {row}, on task {column}",
    )  # fmt: skip
    axes.set_xlabel("evaluated on task")
    axes.set_ylabel("after training task")
    return figure


def differences(groups: Sequence[Group]) -> Figure:
    """For each group after the first and each task its final score minus the first group's."""
    figure, axes = new_figure(WIDTH, 3.2)
    axes.axhline(0, color=MUTED, linewidth=1)
    tasks, count = len(groups[0].first["accuracy"]), len(groups) - 1
    for index, group in enumerate(groups[1:], 1):
        mean, spread, _ = difference(groups[0], group)
        color, aside = SERIES[index % len(SERIES)], 0.6 * ((index - 0.5) / count - 0.5)
        known = np.flatnonzero(~np.isnan(mean))
        axes.vlines(known + aside, (mean - spread)[known], (mean + spread)[known], color=color)
        (line,) = axes.plot(
            known + aside, mean[known], color=color, linestyle="", markersize=5,
            marker=MARKERS[index % len(MARKERS)] if tasks <= MOST_LINES else ".",
            label=shorten(group.label, 28),
        )  # fmt: skip
        if known.size * count <= MOST_LINES * 4:
            said = [f"{group.label}, task {t}: {mean[t]:+.4f} ± {spread[t]:.4f}" for t in known]
            hover(line, said)
    axes.set_ylabel("difference")
    task_axis(axes, tasks, "task")
    legend(axes)
    return figure


def difference(
    first: Group, other: Group
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Mean [T] and standard deviation [T] (0 of one) of final scores, and the seeds of both.

    Over the seeds that both have, each with its own counterpart; where they share none, of the
    means, with the root of the summed variances.
    """
    a, b = first.finals, other.finals
    seeds = sorted(a.keys() & b.keys())
    if seeds:
        apart = np.stack([b[seed] - a[seed] for seed in seeds])
        return mean_of(apart), spread_of(apart), seeds
    ones, others = np.stack(list(a.values())), np.stack(list(b.values()))
    spread = np.hypot(spread_of(ones), spread_of(others))
    return mean_of(others) - mean_of(ones), spread, []


def mean_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the first axis."""
    return np.mean(values, axis=0)


def spread_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation (n - 1) over the first axis; 0 of a single one."""
    return np.std(values, axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])


def limits(groups: Sequence[Group]) -> tuple[float, float]:
    """Shades of all groups' matrices."""
    return score_limits(
        groups[0].first, np.concatenate([group.matrices.ravel() for group in groups])
    )
