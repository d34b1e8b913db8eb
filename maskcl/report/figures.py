"""The pictures of a report as PNG bytes, and those that every method's report has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskcl.metrics import average_accuracy_curve
from maskcl.report.drawing import (
    INK,
    MOST_NUMBERED,
    SERIES,
    legend,
    new_figure,
    png,
    square,
    square_map,
    step_ticks,
    style,
)
from maskcl.report.inference import CONFUSION
from maskcl.report.layout import Content, Picture
from maskcl.report.methods import layout_of
from maskcl.report.scores import score_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_all(result: Content) -> dict[str, bytes]:
    """Every picture of a result by file name (without .png)."""
    import matplotlib as mpl

    with mpl.rc_context(style()):  # type: ignore[arg-type]
        return {picture.name: png(picture.draw(result)) for picture in pictures_of(result)}


def pictures_of(result: Content) -> list[Picture]:
    """The pictures of a result: of any method's, then of its own method's."""
    own = layout_of(result)
    beside = [own.beside] if own.beside is not None else []
    inferred = [CONFUSION] if result.get("inference") else []
    return [ACCURACY, OVER_TIME, *beside, *inferred, *own.pictures]


def matrix_of(result: Content) -> NDArray[np.float64]:
    """M of a result, NaN where it was not measured."""
    return np.array(result["accuracy"], dtype=np.float64)


def accuracy_matrix(result: Content) -> Figure:
    """Heat map of M: a row after each task, a column for each task evaluated."""
    matrix = matrix_of(result)
    figure, axes = square(len(matrix))
    # Results of before there were graphs say nothing of chance.
    chance = min(result.get("chance") or [1 / max(result["scenario"]["outputs"])])
    low = min(chance, np.nanmin(matrix))
    square_map(axes, matrix, low=low, high=1.0, label=score_name(result), digits=3)
    axes.set_xlabel("evaluated on task")
    axes.set_ylabel("after training task")
    return figure


def accuracy_over_time(result: Content) -> Figure:
    """A line for each task from its training on, and the mean over the tasks so far."""
    matrix = matrix_of(result)
    tasks = len(matrix)
    figure, axes = new_figure(10.4, 3.9)
    steps = np.arange(1, tasks + 1)
    for task in range(tasks):
        axes.plot(
            steps[task:], matrix[task:, task],
            color=SERIES[task % len(SERIES)], marker="o", markersize=4, linewidth=1.3,
            label=f"task {task + 1}" if tasks <= MOST_NUMBERED else None,
        )  # fmt: skip
    mean = average_accuracy_curve(matrix)
    axes.plot(steps, mean, color=INK, linewidth=2.6, linestyle=(0, (4, 2)), label="mean so far")
    axes.set_ylim(top=1.0 + 0.04 * (1.0 - axes.get_ylim()[0]))
    axes.set_xlabel("tasks trained")
    axes.set_ylabel(f"test {score_name(result)}")
    axes.set_xticks(step_ticks(steps))
    axes.grid(axis="y")
    legend(axes)
    return figure


ACCURACY = Picture(
    "accuracy",
    "Matrix of scores",
    "Row: after training that task. Column: evaluated on that task, on its test set. A column "
    "that keeps its number downwards has forgotten nothing. Empty cells were not measured.",
    accuracy_matrix,
)
OVER_TIME = Picture(
    "accuracy_over_time",
    "Scores over time",
    "Each task from its own training on, and the mean over the tasks trained so far.",
    accuracy_over_time,
)
