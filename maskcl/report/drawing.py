"""What the pictures share: colours, heat maps, legends, PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1e293b", "#64748b", "#e2e8f0"
SHADES = ("#f1f5f9", "#bfdbfe", "#60a5fa", "#2563eb", "#1e3a8a")
SERIES = (
    "#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626",
    "#0891b2", "#ca8a04", "#db2777", "#4d7c0f", "#475569",
)  # fmt: skip
DPI = 150
# Beyond this many tasks the cells of a square heat map are too small for numbers.
MOST_NUMBERED = 12
# Beyond this many tasks or layers the cells of a map by layer are too small for numbers.
MOST_COLUMNS, MOST_ROWS = 25, 80


def square(tasks: int) -> tuple[Figure, Any]:
    """A figure for a heat map of tasks by tasks."""
    side = min(2.6 + 0.62 * tasks, 6.5)
    return new_figure(side + 0.9, side)


def square_map(
    axes: Axes, values: NDArray[np.float64], *, low: float, high: float, label: str, digits: int
) -> None:
    """Heat map [T, T] with the tasks' numbers, from 1, along both sides. NaN stays white."""
    count = len(values)
    ticks = range(count) if count <= 2 * MOST_NUMBERED else range(0, count, count // 10)
    axes.set_xticks(list(ticks), [str(tick + 1) for tick in ticks])
    axes.set_yticks(list(ticks), [str(tick + 1) for tick in ticks])
    numbered = count <= MOST_NUMBERED
    line = 2 if numbered else 0.5
    size = 9 if numbered else None
    heat_map(axes, values, low=low, high=high, label=label, digits=digits, size=size, line=line)


def heat_map(
    axes: Axes, values: NDArray[np.float64], *, low: float, high: float, label: str,
    digits: int, size: float | None, line: float, aspect: Literal["equal", "auto"] = "equal",
) -> None:  # fmt: skip
    """Shades from ``low`` to ``high`` with their bar; columns are named on top.

    Args:
        axes: with its ticks.
        values: [rows, columns]; NaN stays white.
        low: value of the lightest shade.
        high: value of the darkest shade.
        label: of the bar.
        digits: of the numbers, after the point.
        size: of the numbers' font; None leaves them out.
        line: width of the white lines between cells.
        aspect: "equal" for square cells, "auto" to fill the axes.
    """
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("maskcl", SHADES).with_extremes(bad="#ffffff")
    high = high if high > low else low + 1
    masked = np.ma.masked_invalid(values)
    image = axes.imshow(masked, cmap=shades, vmin=low, vmax=high, aspect=aspect)
    axes.tick_params(length=0)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    # White lines between the cells.
    axes.set_xticks(np.arange(-0.5, values.shape[1]), minor=True)
    axes.set_yticks(np.arange(-0.5, values.shape[0]), minor=True)
    axes.grid(which="minor", color="white", linewidth=line)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label=label)
    bar.outline.set_visible(False)
    if size is not None:
        _numbers(axes, values, (low + high) / 2, digits, size)


def layer_map(
    values: NDArray[np.float64], labels: Sequence[str], *, low: float, high: float, label: str,
    digits: int,
) -> tuple[Figure, Axes]:  # fmt: skip
    """Heat map [layers, tasks]; the last row, of all layers together, stands apart.

    Args:
        values: one row a label; NaN stays white.
        labels: of the rows; where they are very many, of some.
        low: as for `heat_map`.
        high: likewise.
        label: likewise.
        digits: likewise.
    """
    rows, tasks = values.shape
    numbered = tasks <= MOST_COLUMNS and rows <= MOST_ROWS
    each = 0.27 if rows <= MOST_ROWS else max(0.04, 12 / rows)
    thin = each < 0.14
    # No lower than the bar's label is long.
    figure, axes = new_figure(min(10.4, 4.0 + 0.62 * tasks), max(2.7, 1.1 + each * rows))
    step = -(-rows // MOST_ROWS)
    # From the end, so that the last row keeps its name.
    named = sorted(range(rows - 1, -1, -step))
    axes.set_yticks(named, [labels[row] for row in named], fontsize=6.5 if thin else 8.5)
    across = range(0, tasks, 1 if tasks <= MOST_COLUMNS else tasks // 12)
    axes.set_xticks(list(across), [str(task + 1) for task in across])
    size = 8.5 if tasks <= 15 else 6.5
    heat_map(
        axes, values, low=low, high=high, label=label, digits=digits,
        size=size if numbered else None, line=0.3 if thin else 1, aspect="auto",
    )  # fmt: skip
    axes.axhline(rows - 1.5, color="white", linewidth=2 if thin else 5)
    return figure, axes


def _numbers(
    axes: Axes, values: NDArray[np.float64], middle: float, digits: int, size: float
) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        text = f"{round(float(value), digits) + 0.0:.{digits}f}"  # no -0.0
        text = text[1:] if text.startswith("0.") and digits == 3 else text
        color = "white" if value > middle else INK
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)


def legend(axes: Axes) -> None:
    """To the right of the axes, if there is anything to name."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def step_ticks(steps: NDArray[np.int_]) -> Sequence[int]:
    """Those of the tasks' numbers that fit along an axis."""
    fits = len(steps) <= MOST_NUMBERED
    return list(steps if fits else steps[:: len(steps) // MOST_NUMBERED + 1])


def shorten(name: str, most: int) -> str:
    """A name of at most ``most`` letters: the end tells layers apart, so the start goes."""
    return name if len(name) <= most else "\N{HORIZONTAL ELLIPSIS}" + name[1 - most :]


def rgb(color: str) -> tuple[float, float, float]:
    """#rrggbb as three numbers in [0, 1]."""
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def new_figure(
    width: float, height: float, *, rows: int = 1, columns: int = 1
) -> tuple[Figure, Any]:
    """A figure of its own: pyplot would keep state and choose a backend for the whole process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def style() -> dict[str, Any]:
    """matplotlib's settings for every picture."""
    return {
        "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK,
        "axes.labelcolor": INK, "axes.edgecolor": "#cbd5e1", "axes.titlesize": 11,
        "axes.titlecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.axisbelow": True, "xtick.color": MUTED, "ytick.color": MUTED,
        "grid.color": GRID, "legend.fontsize": 9,
    }  # fmt: skip


def png(figure: Figure) -> bytes:
    """The picture's bytes; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # No software stamp: it would change with the version. Tight: the constrained layout cuts the
    # side labels of square axes once their ticks are many.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None}, bbox_inches="tight")
    return buffer.getvalue()
