"""Where a run infers tasks: both views of its scores, and which tasks are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from maskcl.report.heat_maps import square, square_map
from maskcl.report.layout import Content, Picture, Table
from maskcl.report.text import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def both_views(result: Content) -> list[list[str]]:
    """Heading, a row for each task after the last one, and the means."""
    found = result["inference"]
    columns = [result["accuracy"][-1], *(found[n][-1] for n in ("identified", "told", "alone"))]
    rows = [["task", "inferred", "task identified", "task told", "LDA of the input alone"]]
    for task, scores in enumerate(zip(*columns, strict=True)):
        rows.append([str(task), *(number(score, 4) for score in scores)])
    means = [None if None in column else float(np.mean(column)) for column in columns]
    rows.append(["mean", *(number(mean, 4) for mean in means)])
    return rows


def confusion(result: Content) -> Figure:
    """Heat map of the share of each task's test samples that are taken for each task."""
    counts = np.array(result["inference"]["confusion"], dtype=np.float64)
    shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure, axes = square(len(shares))
    square_map(
        axes, shares, low=0, high=100, label="percent of the row's samples", digits=1,
        words="of task {row}, taken for task {column}, percent",
    )  # fmt: skip
    axes.set_xlabel("taken for task")
    axes.set_ylabel("of task")
    return figure


VIEWS = Table(
    "Task inferred and task told",
    "After the last task. Inferred: nobody tells the task of a test sample. Identified: the share "
    "of samples whose task is inferred right. Told: each sample under its own task's mask. The "
    "last column has no network: linear discriminant analysis of random features of the input.",
    both_views,
    needs=("inference",),
)
CONFUSION = Picture(
    "confusion",
    "Tasks taken for each other",
    "Share of the row's task's test samples that are taken for the column's task.",
    confusion,
    needs=("inference",),
)
