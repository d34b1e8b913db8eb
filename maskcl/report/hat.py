"""The report of a HAT run: capacity used, weights protected, masks of units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from maskcl.report.drawing import (
    MOST_LINES,
    MOST_NUMBERED,
    WIDTH,
    layer_name,
    legend,
    new_figure,
    plot_lines,
    task_axis,
)
from maskcl.report.heat_maps import coarse, shades, square, square_map
from maskcl.report.layout import Card, Content, Layout, Measure, Picture
from maskcl.report.mask_metrics import mask_overlap
from maskcl.report.masks import decode_masks
from maskcl.report.svg import hover
from maskcl.report.text import byte_count, percent
from maskcl.report.theme import INK, SERIES, SHADES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def capacity(result: Content) -> Figure:
    """Share of each layer's units in use after each task."""
    return _by_layer(result["capacity"], "percent of units used")


def protected(result: Content) -> Figure:
    """Share of each weight's elements that is protected after each task."""
    weights = [
        {name: share for name, share in after.items() if not name.endswith("bias")}
        for after in result["protected"]
    ]
    return _by_layer(weights, "percent protected")


def _by_layer(history: list[dict[str, float]], label: str) -> Figure:
    names = list(history[0]) if history else []
    figure, axes = new_figure(WIDTH, 3.0)
    steps = list(range(len(history)))
    lines = [(layer_name(name), steps, [100 * after[name] for after in history]) for name in names]
    plot_lines(axes, lines, words="{name} after task {task}, percent", digits=1)
    if len(names) > MOST_NUMBERED:
        mean = [100 * float(np.mean(list(after.values()))) for after in history]
        axes.plot(steps, mean, color=INK, linewidth=2.2, label=f"mean of {len(names)} layers")
    axes.set_ylabel(label)
    axes.set_ylim(-3, 103)
    task_axis(axes, len(history))
    legend(axes)
    return figure


def overlap(result: Content) -> Figure:
    """Heat map of the share of task j's units that task i uses too."""
    shares = 100 * mask_overlap(decode_masks(result["masks"]))
    figure, axes = square(len(shares))
    square_map(
        axes, shares, low=0, high=100, label="percent of the column's units", digits=0,
        words="percent of task {column}'s units that task {row} uses too",
    )  # fmt: skip
    axes.set_xlabel("of the units of task")
    axes.set_ylabel("used by task too")
    return figure


def mask_maps(result: Content) -> Figure:
    """For each layer the units (columns, sorted by who uses them) that each task (rows) uses."""
    masks = decode_masks(result["masks"])
    layers = result["masks"]["layers"]
    tasks = len(masks)
    each = 0.5 + min(0.14 * tasks, 2.2)
    figure, rows = new_figure(WIDTH + 1.2, each * len(layers) + 0.3, rows=len(layers))
    for axes, (name, (first, stop)) in zip(np.atleast_1d(rows), layers.items()):
        part = masks[:, first:stop]
        # The last task that uses a unit decides first: its row begins with one run.
        part = part[:, np.lexsort(part[::-1])[::-1]]
        if tasks <= MOST_LINES:
            _runs(axes, part, layer_name(name))
        else:
            extent = (-0.5, stop - first - 0.5, tasks - 0.5, -0.5)
            picture = shades(coarse(part.astype(np.float64)))
            axes.imshow(picture, interpolation="none", aspect="auto", extent=extent)
        used = 100 * part.any(axis=0).mean() if part.size else 0.0
        title = f"{layer_name(name)}: {stop - first} units, {used:.0f} % used"
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlim(-0.5, max(stop - first, 1) - 0.5)
        axes.set_ylim(tasks - 0.5, -0.5)
        named = list(range(tasks)) if tasks <= MOST_NUMBERED else [0, tasks - 1]
        axes.set_yticks(named, [str(task) for task in named], fontsize=8)
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.set_ylabel("task")
        axes.spines[:].set_visible(False)
    return figure


def _runs(axes: Axes, part: NDArray[np.bool_], name: str) -> None:
    """A bar for each run of units that a task uses, in the task's colour."""
    count = part.shape[1]
    for task, mask in enumerate(part):
        axes.barh(task, count, 0.86, left=-0.5, color=SHADES[0])
        edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.astype(np.int8), [0]))))
        runs = [(first - 0.5, stop - first) for first, stop in edges.reshape(-1, 2)]
        color = SERIES[task % len(SERIES)]
        bars = axes.broken_barh(runs, (task - 0.43, 0.86), facecolors=color, linewidth=0)
        hover(bars, [f"task {task} uses {mask.sum()} of {count} units of {name}"] * len(runs))


def units_used(result: Content) -> float | None:
    """Mean over the layers after the last task; None where nothing was recorded."""
    if result.get("forgotten"):  # the history is the training's, the masks are the network's of now
        masks, layers = decode_masks(result["masks"]), result["masks"]["layers"].values()
        shares = [masks[:, first:stop].any(axis=0).mean() for first, stop in layers]
        return float(np.mean(shares))
    history = result.get("capacity")
    if not history or not history[-1]:
        return None
    return float(sum(history[-1].values()) / len(history[-1]))


def free(result: Content) -> Card:
    """How many units and weights no finished task uses; not counted in runs of before."""
    if "free" not in result:
        return Card("n/a", "free units and weights")
    (units, all_units), (weights, all_weights) = result["free"]["units"], result["free"]["weights"]
    shares = units / max(all_units, 1), weights / max(all_weights, 1)
    return Card(
        f"{units:,} units, {weights:,} weights",
        f"free for later tasks: {percent(shares[0])} and {percent(shares[1])}",
    )


LAYOUT = Layout(
    title="HAT",
    measures=(
        Measure("units used", units_used, percent, column="used", needs=("capacity",)),
        Measure(
            "weights protected",
            lambda r: r["protected_share"],
            percent,
            column="protected",
            needs=("protected_share",),
        ),
        Measure("a task's mask", lambda r: r["mask_bytes"], byte_count, needs=("mask_bytes",)),
    ),
    cards=(free,),
    beside=Picture(
        "overlap",
        "Mask overlap",
        "Share of the column's task's units that the row's task uses too.",
        overlap,
        needs=("masks",),
    ),
    pictures=(
        Picture(
            "capacity",
            "Capacity used",
            "Share of each layer's units that finished tasks use; the rest is free for later ones.",
            capacity,
            needs=("capacity",),
        ),
        Picture(
            "protected",
            "Weights protected",
            "Share of each weight's elements that finished tasks protect; later tasks train the "
            "rest.",
            protected,
            needs=("protected",),
        ),
        Picture(
            "masks",
            "Masks by layer",
            "Coloured: the task uses the unit. Units are sorted by the tasks that use them, so a "
            "column keeps its place within a layer only.",
            mask_maps,
            needs=("masks",),
        ),
    ),
)
