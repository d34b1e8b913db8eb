"""Draws docs/split-digits.svg from a real run: ``python docs/picture.py`` (half a minute).

Left: test accuracy on each task while five tasks are trained one after the other, with HAT and
with the same network, heads, optimizer and data without masks. Right: the masks that HAT learned
in the first hidden layer.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from maskcl import cli, models, report, scenarios
from maskcl.report.drawing import layer_name, style
from maskcl.report.svg import standalone, svg
from maskcl.report.theme import SERIES, SHADES

LABEL = "Test accuracy of five tasks trained in turn, and the units that each task uses"
EPOCHS, BATCH, RATE, SEED = 10, 16, 0.005, 0


def with_hat() -> dict:
    """The result of the run in the README."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        wanted = f"train hat --scenario split-digits --epochs {EPOCHS} --seed {SEED} --out {run}"
        assert cli.main(wanted.split()) == 0
        return report.read_result(run)


def without_masks(scenario: scenarios.Scenario) -> np.ndarray:
    """M of plain fine-tuning: one body, a head for each task."""
    torch.manual_seed(SEED)
    body = models.mlp(scenario.input_shape, 2)[:-1]
    heads = [nn.Linear(200, outputs) for outputs in scenario.classes_per_task]
    matrix = np.full((scenario.num_tasks, scenario.num_tasks), np.nan)
    for task, head in enumerate(heads):
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=RATE)
        train = scenario.train_set(task)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(train)).split(BATCH):
                x, y = train.take(rows)
                optimizer.zero_grad()
                F.cross_entropy(head(body(x)), y).backward()
                optimizer.step()
        for seen in range(task + 1):
            inputs = scenario.test_inputs(seen)
            with torch.no_grad():
                logits = heads[seen](body(inputs.take(torch.arange(len(inputs)))))
            matrix[task, seen] = scenario.score(seen, logits.argmax(dim=1))
    return matrix


def draw(result: dict, plain: np.ndarray) -> Figure:
    """The picture."""
    figure = Figure(figsize=(9, 3.1), layout="constrained", facecolor="none")
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 1.25))
    left = figure.add_subplot(grid[0, 0])
    middle = figure.add_subplot(grid[0, 1], sharey=left)
    for axes, matrix, title in (
        (left, plain, "without masks"),
        (middle, np.array(result["accuracy"], dtype=float), "with HAT"),
    ):
        for task in range(len(matrix)):
            steps = np.arange(task, len(matrix))
            axes.plot(steps, matrix[task:, task], color=SERIES[task], marker="o", linewidth=2)
        axes.set_title(f"{title}: mean {np.mean(matrix[-1]):.3f}")
        axes.set_xlabel("after training task")
        axes.set_xticks(range(len(matrix)))
        axes.grid(axis="y")
    left.set_ylabel("test accuracy, a line a task")
    draw_units(figure.add_subplot(grid[0, 2]), result)
    return figure


def draw_units(axes: Axes, result: dict) -> None:
    """A row a task: the units of the first layer that it uses, sorted by who uses them."""
    masks = report.decode_masks(result["masks"])
    name, (first, stop) = next(iter(result["masks"]["layers"].items()))
    part = masks[:, first:stop]
    part = part[:, np.lexsort(part[::-1])[::-1]]
    axes.set_facecolor(SHADES[0])
    for task, mask in enumerate(part):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]]).astype(int)))
        runs = [(start, end - start) for start, end in edges.reshape(-1, 2)]
        axes.broken_barh(runs, (task - 0.5, 1), color=SERIES[task], linewidth=0)
    axes.set(xlim=(0, stop - first), ylim=(len(part) - 0.5, -0.5), xticks=[])
    axes.set_title(f"who uses the {stop - first} units of {layer_name(name)}")
    axes.set_yticks(range(len(part)), [f"task {task}" for task in range(len(part))])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def main() -> None:
    """Train twice and draw."""
    plain = without_masks(scenarios.load("split-digits", seed=SEED))
    result = with_hat()
    with mpl.rc_context(style()):
        element = svg(draw(result, plain), "digits", LABEL)
    # Where it is an image of its own, its size is for what shows it to say.
    element = re.sub(r' style="width:100%[^"]*"', "", element, count=1)
    Path(__file__).with_name("split-digits.svg").write_bytes(standalone(element))


if __name__ == "__main__":
    main()
