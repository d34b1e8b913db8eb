"""The figures of a report, as PNG bytes."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maskcl.metrics import average_accuracy_curve, mask_overlap
from maskcl.report.masks import decode_masks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1e293b", "#64748b", "#e2e8f0"
SHADES = ("#f1f5f9", "#bfdbfe", "#60a5fa", "#2563eb", "#1e3a8a")
SERIES = (
    "#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626",
    "#0891b2", "#ca8a04", "#db2777", "#4d7c0f", "#475569",
)  # fmt: skip
# Beyond this many tasks the cells of a heat map are too small for numbers.
MOST_NUMBERED = 12


def draw_all(result: dict[str, Any]) -> dict[str, bytes]:
    """Every figure of a result by file name (without .png), in the order of the report."""
    import matplotlib as mpl

    with mpl.rc_context(_style()):  # type: ignore[arg-type]
        return {
            "accuracy": _png(accuracy_matrix(result)),
            "accuracy_over_time": _png(accuracy_over_time(result)),
            "capacity": _png(capacity(result)),
            "overlap": _png(overlap(result)),
            "masks": _png(mask_maps(result)),
        }


def matrix_of(result: dict[str, Any]) -> NDArray[np.float64]:
    """M of a result, NaN where it was not measured."""
    return np.array(result["accuracy"], dtype=np.float64)


def accuracy_matrix(result: dict[str, Any]) -> Figure:
    """Heat map of M: a row after each task, a column for each task evaluated."""
    matrix = matrix_of(result)
    tasks = len(matrix)
    side = min(2.6 + 0.62 * tasks, 6.5)
    figure, axes = _figure(side + 0.9, side)
    chance = 1 / max(result["scenario"]["outputs"])
    worst = np.nanmin(matrix)
    _heat_map(axes, matrix, low=min(chance, worst), label="accuracy")
    axes.set_xlabel("evaluated on task")
    axes.set_ylabel("after training task")
    return figure


def accuracy_over_time(result: dict[str, Any]) -> Figure:
    """A line for each task from its training on, and the mean over the tasks so far."""
    matrix = matrix_of(result)
    tasks = len(matrix)
    figure, axes = _figure(10.4, 3.9)
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
    axes.set_ylabel("test accuracy")
    axes.set_xticks(steps if tasks <= MOST_NUMBERED else steps[:: tasks // MOST_NUMBERED + 1])
    axes.grid(axis="y")
    _legend(axes)
    return figure


def capacity(result: dict[str, Any]) -> Figure:
    """Left: share of each layer's units in use; right: share of each weight protected."""
    figure, (left, right) = _figure(10.4, 4.2, columns=2)
    weights = [
        {name: share for name, share in after.items() if not name.endswith("bias")}
        for after in result["protected"]
    ]
    for axes, history, title in (
        (left, result["capacity"], "units used by any task"),
        (right, weights, "weights protected"),
    ):
        names = list(history[0]) if history else []
        steps = np.arange(1, len(history) + 1)
        for index, name in enumerate(names):
            share = [100 * after[name] for after in history]
            axes.plot(
                steps, share, color=SERIES[index % len(SERIES)], marker="o", markersize=4,
                linewidth=1.6, label=name if len(names) <= MOST_NUMBERED else None,
            )  # fmt: skip
        if len(names) > MOST_NUMBERED:
            mean = [100 * float(np.mean(list(after.values()))) for after in history]
            axes.plot(steps, mean, color=INK, linewidth=2.6, label=f"mean of {len(names)}")
        axes.set_title(title)
        axes.set_xlabel("tasks trained")
        axes.set_ylabel("percent")
        axes.set_ylim(-3, 103)
        axes.set_xticks(
            steps if len(steps) <= MOST_NUMBERED else steps[:: len(steps) // MOST_NUMBERED + 1]
        )
        axes.grid(axis="y")
        _legend(axes)
    return figure


def overlap(result: dict[str, Any]) -> Figure:
    """Heat map of the share of task j's units that task i uses too."""
    shares = mask_overlap(decode_masks(result["masks"]))
    side = min(2.6 + 0.62 * len(shares), 6.5)
    figure, axes = _figure(side + 0.9, side)
    _heat_map(axes, 100 * shares, low=0, high=100, label="percent of the column's units")
    axes.set_xlabel("of the units of task")
    axes.set_ylabel("used by task too")
    return figure


def mask_maps(result: dict[str, Any]) -> Figure:
    """For each layer the units (columns, sorted by who uses them) that each task (rows) uses."""
    masks = decode_masks(result["masks"])
    layers = result["masks"]["layers"]
    tasks = len(masks)
    each = 0.55 + min(0.17 * tasks, 2.5)
    figure, rows = _figure(9.6, each * len(layers) + 0.4, rows=len(layers))
    for axes, (name, (first, stop)) in zip(np.atleast_1d(rows), layers.items()):
        part = masks[:, first:stop]
        # Shades by task: the eye finds a task's row in every layer by its colour.
        picture = np.ones((*part.shape, 3))
        for task in range(tasks):
            picture[task, part[task]] = _rgb(SERIES[task % len(SERIES)])
            picture[task, ~part[task]] = _rgb(SHADES[0])
        order = np.lexsort(part[::-1])[::-1]
        axes.imshow(picture[:, order], aspect="auto", interpolation="nearest")
        used = 100 * part.any(axis=0).mean() if part.size else 0.0
        axes.set_title(f"{name}: {stop - first} units, {used:.0f} % used", loc="left", fontsize=9)
        axes.set_yticks(range(tasks) if tasks <= MOST_NUMBERED else [0, tasks - 1])
        axes.set_yticklabels(
            [str(task + 1) for task in (range(tasks) if tasks <= MOST_NUMBERED else (0, tasks - 1))]
        )
        axes.set_xticks([])
        axes.set_ylabel("task")
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def _heat_map(
    axes: Axes, values: NDArray[np.float64], *, low: float, label: str, high: float = 1.0
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("maskcl", SHADES).with_extremes(bad="#ffffff")
    high = high if high > low else low + 1
    image = axes.imshow(np.ma.masked_invalid(values), cmap=shades, vmin=low, vmax=high)
    count = len(values)
    ticks = range(count) if count <= 2 * MOST_NUMBERED else range(0, count, count // 10)
    axes.set_xticks(list(ticks), [str(tick + 1) for tick in ticks])
    axes.set_yticks(list(ticks), [str(tick + 1) for tick in ticks])
    axes.tick_params(length=0)
    axes.xaxis.set_label_position("top")
    axes.xaxis.tick_top()
    # White lines between the cells.
    axes.set_xticks(np.arange(-0.5, count), minor=True)
    axes.set_yticks(np.arange(-0.5, count), minor=True)
    axes.grid(which="minor", color="white", linewidth=2 if count <= MOST_NUMBERED else 0.5)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label=label)
    bar.outline.set_visible(False)
    if count <= MOST_NUMBERED:
        _numbers(axes, values, (low + high) / 2, digits=3 if high <= 1 else 0)


def _numbers(axes: Axes, values: NDArray[np.float64], middle: float, digits: int) -> None:
    for (i, j), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        text = f"{value:.{digits}f}"
        text = text[1:] if text.startswith("0.") else text
        color = "white" if value > middle else INK
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=9)


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _rgb(color: str) -> tuple[float, float, float]:
    return tuple(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))  # type: ignore[return-value]


def _figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """A figure of its own: pyplot would keep state and choose a backend for the whole process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _style() -> dict[str, Any]:
    return {
        "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK,
        "axes.labelcolor": INK, "axes.edgecolor": "#cbd5e1", "axes.titlesize": 11,
        "axes.titlecolor": INK, "axes.spines.top": False, "axes.spines.right": False,
        "axes.axisbelow": True, "xtick.color": MUTED, "ytick.color": MUTED,
        "grid.color": GRID, "legend.fontsize": 9,
    }  # fmt: skip


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No software stamp: the same result gives the same bytes.
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
