"""The report of a HAT run: capacity used, weights protected, masks of units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskcl.report.drawing import (
    INK,
    MOST_NUMBERED,
    SERIES,
    SHADES,
    legend,
    new_figure,
    rgb,
    square,
    square_map,
    step_ticks,
)
from maskcl.report.layout import Card, Content, Layout, Measure, Picture
from maskcl.report.masks import decode_masks
from maskcl.report.text import byte_count, percent
from maskcl.training.mask_metrics import mask_overlap

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def capacity(result: Content) -> Figure:
    """Left: share of each layer's units in use; right: share of each weight protected."""
    figure, (left, right) = new_figure(10.4, 4.2, columns=2)
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
        axes.set_xticks(step_ticks(steps))
        axes.grid(axis="y")
        legend(axes)
    return figure


def overlap(result: Content) -> Figure:
    """Heat map of the share of task j's units that task i uses too."""
    shares = 100 * mask_overlap(decode_masks(result["masks"]))
    figure, axes = square(len(shares))
    square_map(axes, shares, low=0, high=100, label="percent of the column's units", digits=0)
    axes.set_xlabel("of the units of task")
    axes.set_ylabel("used by task too")
    return figure


def mask_maps(result: Content) -> Figure:
    """For each layer the units (columns, sorted by who uses them) that each task (rows) uses."""
    masks = decode_masks(result["masks"])
    layers = result["masks"]["layers"]
    tasks = len(masks)
    each = 0.55 + min(0.17 * tasks, 2.5)
    figure, rows = new_figure(9.6, each * len(layers) + 0.4, rows=len(layers))
    for axes, (name, (first, stop)) in zip(np.atleast_1d(rows), layers.items()):
        part = masks[:, first:stop]
        # Shades by task: the eye finds a task's row in every layer by its colour.
        picture = np.ones((*part.shape, 3))
        for task in range(tasks):
            picture[task, part[task]] = rgb(SERIES[task % len(SERIES)])
            picture[task, ~part[task]] = rgb(SHADES[0])
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


def units_used(result: Content) -> float | None:
    """Mean over the layers after the last task; None where nothing was recorded."""
    if result.get("forgotten"):  # the history is the training's, the masks are the network's of now
        masks, layers = decode_masks(result["masks"]), result["masks"]["layers"].values()
        shares = [masks[:, first:stop].any(axis=0).mean() for first, stop in layers]
        return float(np.mean(shares))
    history = result["capacity"]
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
        Measure("units used", units_used, percent, column="used"),
        Measure("weights protected", lambda r: r["protected_share"], percent, column="protected"),
        Measure("a task's mask", lambda r: r["mask_bytes"], byte_count),
    ),
    cards=(free,),
    beside=Picture(
        "overlap",
        "Mask overlap",
        "Share of the column's task's units that the row's task uses too.",
        overlap,
    ),
    pictures=(
        Picture(
            "capacity",
            "Capacity used and protected",
            "Left: share of each layer's units that finished tasks use. Right: share of each "
            "weight's elements that finished tasks protect; the rest is free for later tasks.",
            capacity,
        ),
        Picture(
            "masks",
            "Masks by layer",
            "Coloured: the task uses the unit. Units are sorted by the tasks that use them, so a "
            "column keeps its place within a layer only.",
            mask_maps,
        ),
    ),
)
