"""Heat maps: tasks by tasks, and layers by tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from maskcl.report.drawing import MOST_COLUMNS, MOST_NUMBERED, WIDTH, new_figure, rgb
from maskcl.report.svg import hover
from maskcl.report.theme import HEAT, INK, ON_HEAT, PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Beyond this many layers the cells of a map by layer are too small for numbers.
MOST_ROWS = 80
# Beyond these a heat map is an image without values to hover over, and beyond those a coarser one.
MOST_CELLS, MOST_PIXELS = 1600, 200


def square(tasks: int) -> tuple[Figure, Any]:
    """A figure for a heat map of tasks by tasks."""
    side = min(2.0 + 0.45 * tasks, 4.2)
    return new_figure(side + 0.6, side)


def square_map(
    axes: Axes, values: NDArray[np.float64], *, low: float, high: float, label: str, digits: int,
    words: str,
) -> None:  # fmt: skip
    """Heat map [T, T] with the tasks' numbers, from 0, along both sides. NaN stays empty."""
    count = len(values)
    ticks = range(count) if count <= 2 * MOST_NUMBERED else range(0, count, count // 8)
    axes.set_xticks(list(ticks), [str(tick) for tick in ticks])
    axes.set_yticks(list(ticks), [str(tick) for tick in ticks])
    numbered = count <= MOST_NUMBERED
    size = (9 if count <= 8 else 7) if numbered else None
    names = [str(task) for task in range(count)]
    heat_map(
        axes, values, low=low, high=high, label=label, digits=digits, size=size,
        line=1.5 if numbered else 0.4, words=words, rows=names,
    )  # fmt: skip


def heat_map(
    axes: Axes, values: NDArray[np.float64], *, low: float, high: float, label: str,
    digits: int, size: float | None, line: float, words: str, rows: Sequence[str],
    aspect: Literal["equal", "auto"] = "equal",
) -> None:  # fmt: skip
    """Shades from ``low`` to ``high`` with their bar; columns are named on top.

    Args:
        axes: with its ticks.
        values: [rows, columns]; NaN stays empty.
        low: value of the lightest shade.
        high: value of the darkest shade.
        label: of the bar.
        digits: of the numbers, after the point.
        size: of the numbers' font; None leaves them out.
        line: width of the lines between cells.
        words: what stands before a cell's value where it is hovered over, with ``{row}`` and
            ``{column}``.
        rows: the rows' names there.
        aspect: "equal" for square cells, "auto" to fill the axes.
    """
    high = high if high > low else low + 1
    level = np.clip((values - low) / (high - low), 0, 1)
    down, across = values.shape
    if values.size <= MOST_CELLS:
        mesh = axes.pcolormesh(
            np.arange(across + 1) - 0.5, np.arange(down + 1) - 0.5, shades(level),
            edgecolor=PAPER, linewidth=line,
        )  # fmt: skip
        said = [
            "" if np.isnan(v) else f"{words.format(row=rows[i], column=j)}: {v:.{digits + 1}f}"
            for (i, j), v in np.ndenumerate(values)
        ]
        hover(mesh, said if len(said) > 1 else [*said, ""])
        axes.set_aspect(aspect)
    else:
        extent = (-0.5, across - 0.5, down - 0.5, -0.5)
        axes.imshow(shades(coarse(level)), interpolation="none", aspect=aspect, extent=extent)
    axes.set_xlim(-0.5, across - 0.5)
    axes.set_ylim(down - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    axes.spines[:].set_visible(False)
    _bar(axes, low, high, label)
    if size is not None:
        _numbers(axes, values, level, digits, size)


def shades(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGBA: one colour, the more opaque the higher, so that it suits light paper and dark."""
    colors = np.zeros((*level.shape, 4))
    colors[..., :3] = rgb(HEAT)
    colors[..., 3] = np.where(np.isnan(level), 0.0, 0.07 + 0.93 * np.nan_to_num(level))
    return colors


def _bar(axes: Axes, low: float, high: float, label: str) -> None:
    """The shades and their values, right of the axes."""
    bar = axes.inset_axes((1.03, 0.0, 0.04, 1.0))
    ramp = shades(np.linspace(1, 0, 48)[:, None])
    bar.imshow(ramp, interpolation="none", aspect="auto", extent=(0, 1, low, high))
    bar.set_xticks([])
    bar.yaxis.tick_right()
    bar.yaxis.set_label_position("right")
    bar.set_ylabel(label)
    bar.tick_params(length=0)
    bar.spines[:].set_visible(False)


def coarse(values: NDArray[np.float64], most: int = MOST_PIXELS) -> NDArray[np.float64]:
    """Means of neighbouring rows and columns, so that neither are more than ``most``."""
    for axis in (0, 1):
        count = values.shape[axis]
        if count > most:
            step = -(-count // most)
            starts = np.arange(0, count, step)
            known = ~np.isnan(values)
            sums = np.add.reduceat(np.where(known, values, 0.0), starts, axis=axis)
            counts = np.add.reduceat(known.astype(float), starts, axis=axis)
            values = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return values


def layer_map(
    values: NDArray[np.float64], labels: Sequence[str], *, low: float, high: float, label: str,
    digits: int, words: str = "{row}, task {column}",
) -> tuple[Figure, Axes]:  # fmt: skip
    """Heat map [layers, tasks]; the last row, of all layers together, stands apart.

    Args:
        values: one row a label; NaN stays empty.
        labels: of the rows; where they are very many, of some.
        low: as for `heat_map`.
        high: likewise.
        label: likewise.
        digits: likewise.
        words: likewise.
    """
    rows, tasks = values.shape
    numbered = tasks <= MOST_COLUMNS and rows <= MOST_ROWS
    each = 0.25 if rows <= MOST_ROWS else max(0.04, 12 / rows)
    thin = each < 0.14
    longest = max(map(len, labels))
    width = max(WIDTH, 1.0 + 0.075 * longest + 0.42 * min(tasks, MOST_COLUMNS))
    # No lower than the bar's label is long.
    figure, axes = new_figure(width, max(2.4, 0.8 + each * rows))
    step = -(-rows // MOST_ROWS)
    # From the end, so that the last row keeps its name.
    named = sorted(range(rows - 1, -1, -step))
    axes.set_yticks(named, [labels[row] for row in named], fontsize=6.5 if thin else 9)
    across = range(0, tasks, 1 if tasks <= MOST_COLUMNS else tasks // 12)
    axes.set_xticks(list(across), [str(task) for task in across])
    size = 8.5 if tasks <= 15 else 6.5
    heat_map(
        axes, values, low=low, high=high, label=label, digits=digits, words=words, rows=labels,
        size=size if numbered else None, line=0.3 if thin else 1, aspect="auto",
    )  # fmt: skip
    axes.axhline(rows - 1.5, color=PAPER, linewidth=2 if thin else 5)
    return figure, axes


def _numbers(
    axes: Axes, values: NDArray[np.float64], level: NDArray[np.float64], digits: int, size: float
) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        text = f"{round(float(value), digits) + 0.0:.{digits}f}"  # no -0.0
        text = text[1:] if text.startswith("0.") and digits == 3 else text
        color = ON_HEAT if level[i, j] > 0.7 else INK
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
