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
    shorten,
    square,
    square_map,
    task_axis,
)
from maskcl.report.figures import mean_curve
from maskcl.report.groups import Group
from maskcl.report.scores import chance_of, score_limits, score_name
from maskcl.report.svg import hover
from maskcl.report.theme import MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def means_over_time(groups: Sequence[Group]) -> Figure:
    """A line a group: the mean score on the tasks so far, its runs' extremes shaded."""
    figure, axes = new_figure(WIDTH, 3.6)
    lines, seen = [], []
    for index, group in enumerate(groups):
        curves = np.stack([mean_curve(run.matrix) for run in group.runs])
        steps = list(range(curves.shape[1]))
        lines.append((group.label, steps, mean_of(curves).tolist()))
        seen.append(curves.ravel())
        if len(group.runs) > 1:
            color = SERIES[index % len(SERIES)]
            axes.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.18)
    name = score_name(groups[0].first)
    plot_lines(axes, lines, words=f"{{name}} after task {{task}}, mean {name}", digits=4)
    tasks = max(len(group.first["accuracy"]) for group in groups)
    if (chance := chance_of(groups[0].first)) is not None:
        mean = np.cumsum(chance) / (np.arange(len(chance)) + 1)
        axes.plot(mean, color=MUTED, linewidth=1, label="chance")
    low, high = score_limits(groups[0].first, np.concatenate(seen))
    axes.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set_ylabel(f"mean test {name} so far")
    task_axis(axes, tasks)
    legend(axes)
    return figure


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
