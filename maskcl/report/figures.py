"""The pictures of a report as SVG, and those that every method's report has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskcl.metrics import average_accuracy_curve
from maskcl.report.curves import FREE, LOSS, TRAINING
from maskcl.report.drawing import MOST_LINES, legend, plot_lines, score_panels, style
from maskcl.report.heat_maps import square, square_map
from maskcl.report.inference import CONFUSION
from maskcl.report.layout import Content, Picture
from maskcl.report.methods import layout_of
from maskcl.report.scores import chance_of, score_limits, score_name
from maskcl.report.svg import svg
from maskcl.report.theme import INK, MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_all(result: Content) -> dict[str, str]:
    """Every picture of a result, an ``<svg>`` by name; those for which it has no figures yet not.

    Raises:
        ImportError: matplotlib is missing.
    """
    return {
        picture.name: drawn(picture, result)
        for picture in pictures_of(result)
        if picture.is_drawable(result)
    }


def drawn(picture: Picture, result: Content) -> str:
    """One picture as an ``<svg>`` element."""
    import matplotlib as mpl

    with mpl.rc_context(style()):  # type: ignore[arg-type]
        return svg(picture.draw(result), picture.name, f"{picture.title}. {picture.caption}")


def pictures_of(result: Content) -> list[Picture]:
    """The pictures of a result: of any method's, then of its own method's."""
    own = layout_of(result)
    beside = [own.beside] if own.beside is not None else []
    return [ACCURACY, OVER_TIME, *beside, LOSS, TRAINING, FREE, CONFUSION, *own.pictures]


def matrix_of(result: Content) -> NDArray[np.float64]:
    """M of a result, NaN where it was not measured."""
    return np.array(result["accuracy"], dtype=np.float64)


def accuracy_matrix(result: Content) -> Figure:
    """Heat map of M: a row after each task, a column for each task evaluated."""
    matrix = matrix_of(result)
    figure, axes = square(len(matrix))
    low, high = score_limits(result, matrix)
    square_map(
        axes, matrix, low=low, high=high, label=score_name(result), digits=3,
        words="after task {row}, on task {column}",
    )  # fmt: skip
    axes.set_xlabel("evaluated on task")
    axes.set_ylabel("after training task")
    return figure


def accuracy_over_time(result: Content) -> Figure:
    """A line for each task from its training on, the mean over the tasks so far, references.

    Where all scores are close to each other they are drawn once more, larger, on an axis of theirs.
    """
    matrix = matrix_of(result)

    def draw(axes: Axes) -> None:
        _over_time(axes, result, matrix)
        _references(axes, result, len(matrix))

    panels = score_panels(matrix, score_limits(result, matrix), len(matrix), draw)
    panels[-1].set_ylabel(f"test {score_name(result)}")
    legend(panels[-1])
    return panels[-1].figure  # type: ignore[return-value]


def _over_time(axes: Axes, result: Content, matrix: NDArray[np.float64]) -> None:
    """The tasks' lines and their mean."""
    tasks = len(matrix)
    steps = np.arange(tasks)
    if tasks <= MOST_LINES:
        lines = [(f"task {j}", steps[j:].tolist(), matrix[j:, j].tolist()) for j in range(tasks)]
        words = f"{{name}} after task {{task}}, test {score_name(result)}"
        plot_lines(axes, lines, words=words, digits=4)
    else:
        seen = [row[: i + 1][~np.isnan(row[: i + 1])] for i, row in enumerate(matrix)]
        known = [i for i, row in enumerate(seen) if row.size]
        lows, highs = [seen[i].min() for i in known], [seen[i].max() for i in known]
        axes.fill_between(known, lows, highs, color=SERIES[0], alpha=0.25, label="all tasks")
    axes.plot(
        steps, mean_curve(matrix), color=INK, linewidth=2.2, linestyle=(0, (4, 2)),
        label="mean so far",
    )  # fmt: skip


def mean_curve(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """[T], mean over the tasks so far; NaN where one of them was not measured."""
    if np.isnan(matrix).all():
        return np.full(len(matrix), np.nan)
    return average_accuracy_curve(matrix)


def _references(axes: Axes, result: Content, tasks: int) -> None:
    """Lines of chance and of joint training, where they are known: means over the tasks so far."""
    steps = np.arange(tasks)
    counts = steps + 1
    found = result.get("references")
    if found is not None:
        joint = mean_curve(np.array(found["together"], dtype=np.float64))
        axes.plot(steps, joint, color=MUTED, linewidth=1.6, linestyle=(0, (1, 1)),
                  label="joint training, mean")  # fmt: skip
    if (chance := chance_of(result)) is not None:
        mean = np.cumsum(chance) / counts
        axes.plot([-0.5, *steps[1:-1], tasks - 0.5], [mean[0], *mean[1:-1], mean[-1]],
                  color=MUTED, linewidth=1, label="chance")  # fmt: skip


ACCURACY = Picture(
    "accuracy",
    "Matrix of scores",
    "Row: after training that task. Column: evaluated on that task, on its test set. A column "
    "that keeps its number downwards has forgotten nothing. Empty cells were not measured. "
    "Shades begin at chance.",
    accuracy_matrix,
)
OVER_TIME = Picture(
    "accuracy_over_time",
    "Scores over time",
    "Each task from its own training on, and the mean over the tasks trained so far. Markers of "
    "one step stand a little side by side, as equal scores would hide each other. The lowest "
    "axis begins at chance, or else 0; one above it is closer.",
    accuracy_over_time,
)
