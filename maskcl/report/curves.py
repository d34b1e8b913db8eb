"""Training curves: loss, accuracy and free capacity of every epoch, task after task."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from maskcl.report.drawing import MOST_LINES, MOST_POINTS, WIDTH, legend, new_figure
from maskcl.report.layout import Content, Picture
from maskcl.report.scores import chance_of
from maskcl.report.svg import hover
from maskcl.report.theme import GRID, INK, MUTED, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Epochs = Sequence[Sequence[float]]


def loss(result: Content) -> Figure:
    """The mean loss of every epoch; from 0, unless it falls below."""
    figure, axes = new_figure(WIDTH, 2.7)
    history: Epochs = result["losses"]
    _curve(axes, history, history, "loss")
    axes.set_ylabel("training loss")
    values = [v for epochs in history for v in epochs]
    axes.set_ylim(bottom=min(0.0, *values, 0.0))
    _epoch_axis(axes, history)
    return figure


def training(result: Content) -> Figure:
    """Training score of every epoch, and the validation score where a part was held out."""
    figure, axes = new_figure(WIDTH, 3.0)
    history: Epochs = result["training_accuracies"]
    validation: Epochs = result.get("validation_scores") or []
    _curve(axes, history, history, "training accuracy")
    if any(validation):
        axes.plot([], [], color=INK, linewidth=1.2, label="training")
        _curve(axes, validation, history, "validation accuracy", is_second=True)
        _best(axes, result, history, validation)
    values = [v for part in (history, validation) for epochs in part for v in epochs]
    chance = chance_of(result)
    low = min([*(chance or [0.0]), *values])
    if chance is not None:
        spans = list(pairwise(_starts(history)))[: len(chance)]
        edges = [edge for span in spans for edge in span]
        axes.plot(edges, np.repeat(chance[: len(spans)], 2), color=MUTED, linewidth=1,
                  label="chance")  # fmt: skip
    high = max(1.0, *values) if values else 1.0
    axes.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    axes.set_ylabel("accuracy")
    _epoch_axis(axes, history)
    legend(axes)
    return figure


def free(result: Content) -> Figure:
    """Percent of the capacity that is free after every epoch."""
    figure, axes = new_figure(WIDTH, 2.7)
    history = [[100 * v for v in epochs] for epochs in result["free_by_epoch"]]
    _curve(axes, history, history, "free, percent")
    axes.set_ylim(-3, 103)
    axes.set_ylabel("percent free")
    _epoch_axis(axes, history)
    return figure


def _starts(history: Epochs) -> list[int]:
    """Epochs before each task, and in all."""
    return [0, *np.cumsum([len(epochs) for epochs in history]).tolist()]


def _curve(
    axes: Axes, history: Epochs, place: Epochs, name: str, *, is_second: bool = False
) -> None:
    """A line for each task along one axis of epochs, so that none lies on another."""
    if len(history) > MOST_LINES:
        _one_line(axes, history, place, name, is_second=is_second)
        return
    starts, total = _starts(place), sum(map(len, history))
    few = total <= MOST_POINTS
    for task, values in enumerate(history):
        if not len(values):
            continue
        chosen = _sampled(len(values), total)
        color = INK if is_second else SERIES[task % len(SERIES)]
        (line,) = axes.plot(
            [starts[task] + epoch + 0.5 for epoch in chosen], [values[e] for e in chosen],
            color=color, linewidth=1.5, marker=("D" if is_second else "o") if few else "",
            markersize=3.5, markerfacecolor="none" if is_second else color,
            linestyle=(0, (3, 2)) if is_second else "-",
            label=name if is_second and task == 0 else None,
        )  # fmt: skip
        if few:
            hover(line, [f"task {task}, epoch {e + 1}, {name}: {values[e]:.4g}" for e in chosen])


def _one_line(axes: Axes, history: Epochs, place: Epochs, name: str, *, is_second: bool) -> None:
    """Of very many tasks the last epochs alone."""
    starts = _starts(place)
    tasks = [task for task, values in enumerate(history) if len(values)]
    tasks = [tasks[i] for i in _sampled(len(tasks), len(tasks))]
    axes.plot(
        [starts[t] + len(history[t]) - 0.5 for t in tasks], [history[t][-1] for t in tasks],
        color=INK if is_second else SERIES[0], linewidth=1.2,
        linestyle=(0, (3, 2)) if is_second else "-", label=name if is_second else None,
    )  # fmt: skip


def _sampled(count: int, total: int) -> list[int]:
    """Some of so many places, where all together are very many; always the last."""
    step = max(1, -(-total // MOST_POINTS))
    return sorted({*range(0, count, step), count - 1}) if count else []


def _best(axes: Axes, result: Content, history: Epochs, validation: Epochs) -> None:
    """A ring around the epoch that each task went back to."""
    best = result.get("best_epochs") or []
    starts = _starts(history)
    found = [
        (starts[task] + epoch + 0.5, validation[task][epoch])
        for task, epoch in enumerate(best)
        if epoch is not None and task < len(validation) and 0 <= epoch < len(validation[task])
    ]
    if found and len(found) <= MOST_LINES:
        axes.plot(*zip(*found), color=INK, linestyle="", marker="o", markersize=9,
                  markerfacecolor="none", label="epoch kept")  # fmt: skip


def _epoch_axis(axes: Axes, history: Epochs) -> None:
    """Epochs over all tasks along x, each task named under its own."""
    starts = _starts(history)
    shown = [task for task, epochs in enumerate(history) if len(epochs)]
    if len(shown) <= MOST_LINES:
        for task in shown[1:]:
            axes.axvline(starts[task], color=GRID, linewidth=1, zorder=0)
    named = shown[:: -(-len(shown) // 10) or 1]
    middles = [(starts[task] + starts[task + 1]) / 2 for task in named]
    axes.set_xticks(middles, [str(task) for task in named])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(0, max(starts[-1], 1))
    most = max(map(len, history), default=0)
    each = f"up to {most} epochs each" if len(history) <= MOST_LINES else "last epochs"
    axes.set_xlabel(f"task ({each})" if most > 1 else "task")
    axes.grid(axis="y")


LOSS = Picture(
    "loss",
    "Training loss",
    "Mean over every epoch's samples, with the method's own term, task after task.",
    loss,
    needs=("losses",),
)
TRAINING = Picture(
    "training",
    "Training accuracy",
    "Of every epoch while the weights move, task after task; the scores above are of test data.",
    training,
    needs=("training_accuracies",),
)
FREE = Picture(
    "free",
    "Free capacity",
    "Percent of the units that neither an earlier task uses nor the one in training is about to.",
    free,
    needs=("free_by_epoch",),
)
