"""What the pictures share: figures, lines that lie on each other, names of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskcl.report.svg import hover
from maskcl.report.theme import GRID, INK, MUTED, SERIES
from maskcl.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# In inches of 72 units. At a width of 390 pixels a page shows it unshrunk.
WIDTH = 4.8
# Beyond this many tasks the cells of a square heat map are too small for numbers.
MOST_NUMBERED = 12
# Beyond this many tasks the cells of a map by layer are too small for numbers, lines for markers.
MOST_COLUMNS = 25
# Beyond this many tasks a line for each says nothing.
MOST_LINES = 50
MOST_POINTS = 300
MARKERS = "osD^vPX<>*hd"


def plot_lines(
    axes: Axes, lines: Sequence[tuple[str, Sequence[int], Sequence[float | None]]],
    *, words: str, digits: int,
) -> None:  # fmt: skip
    """Lines over tasks, which may lie on each other: each has its marker, a little aside.

    Args:
        axes: of tasks along x.
        lines: name, tasks, values; None and NaN are left out.
        words: of a point hovered over, with ``{name}`` and ``{task}``, before its value.
        digits: of that value.
    """
    count = len(lines)
    named = count <= MOST_NUMBERED
    for index, (name, tasks, values) in enumerate(lines):
        points = [
            (t, v) for t, v in zip(tasks, values, strict=True) if v is not None and np.isfinite(v)
        ]
        if not points:
            continue
        marked = named and len(points) <= MOST_COLUMNS
        aside = 0.5 * ((index + 0.5) / count - 0.5) if marked else 0.0
        color = SERIES[index % len(SERIES)]
        (line,) = axes.plot(
            [t + aside for t, _ in points], [v for _, v in points], color=color,
            marker=MARKERS[index % len(MARKERS)] if marked else "", markersize=4.5,
            linewidth=1.2 if named else 0.7, alpha=1 if named else 0.6,
            label=shorten(name, 28) if named else None,
        )  # fmt: skip
        if marked:
            hover(line, [f"{words.format(name=name, task=t)}: {v:.{digits}f}" for t, v in points])


def score_panels(
    values: NDArray[np.float64], limits: tuple[float, float], tasks: int,
    draw: Callable[[Axes], None],
) -> list[Axes]:  # fmt: skip
    """Axes of scores over tasks: from chance on, and above it, where scores are close, closer.

    Args:
        values: all that is drawn; NaN where there is none.
        limits: `scores.score_limits` of them.
        tasks: how many.
        draw: draws all on the axes that it is given.
    """
    low, high = limits
    known = values[np.isfinite(values)]
    spread = float(np.ptp(known)) if known.size else 0.0
    is_close = 0 < spread < 0.25 * (high - low)
    _, axes = new_figure(WIDTH, 4.6 if is_close else 3.4, rows=2 if is_close else 1)
    panels = list(axes) if is_close else [axes]
    margins = [(known.min() - 0.1 * spread, known.max() + 0.1 * spread)] if is_close else []
    margins.append((low - 0.03 * (high - low), high + 0.03 * (high - low)))
    for part, ends in zip(panels, margins, strict=True):
        draw(part)
        part.set_ylim(*ends)
        task_axis(part, tasks)
    for part in panels[:-1]:
        part.set_title("closer", loc="left")
        part.set_xlabel("")
    return panels


def task_axis(axes: Axes, tasks: int, label: str = "after training task") -> None:
    """Tasks from 0 along x."""
    axes.set_xlabel(label)
    axes.set_xticks(list(range(0, tasks, -(-tasks // MOST_NUMBERED))))
    axes.set_xlim(-0.5, max(tasks - 0.5, 0.5))
    axes.grid(axis="y")


def legend(axes: Axes) -> None:
    """Below the axes, if there is anything to name."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    columns = 1 if max(map(len, labels)) > 24 else 2 if max(map(len, labels)) > 12 else 4
    axes.figure.legend(  # type: ignore[union-attr]
        handles, labels, loc="outside lower center", ncols=columns, frameon=False,
        handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip


def shorten(name: str, most: int) -> str:
    """A name of at most ``most`` letters: the end tells layers apart, so the start goes."""
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[1 - most :]


def layer_name(name: str) -> str:
    """A module's or parameter's name for a person: "layer 3" for the third of a Sequential."""
    name = printable(name).removeprefix("model.")
    return f"layer {name}" if name[:1].isdigit() else name


def rgb(color: str) -> tuple[float, float, float]:
    """#rrggbb as three numbers in [0, 1]."""
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def new_figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1
) -> tuple[Figure, Any]:
    """A figure of its own: pyplot would keep state and choose a backend for the whole process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def style() -> dict[str, Any]:
    """matplotlib's settings for every picture."""
    return {
        "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK,
        "axes.labelcolor": INK, "axes.edgecolor": GRID, "axes.titlesize": 10.5,
        "axes.titlecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.axisbelow": True, "axes.facecolor": "none", "xtick.color": MUTED,
        "ytick.color": MUTED, "grid.color": GRID, "legend.fontsize": 9,
        # A name may hold $: it is no formula.
        "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "maskcl",
        "savefig.facecolor": "none",
    }  # fmt: skip
