"""Draws docs/split-digits.png from a real run: ``python docs/picture.py`` (half a minute).

Left: test accuracy on each task while five tasks are trained one after the other, with HAT and
with the same network, heads, optimizer and data without masks. Right: the masks that HAT learned
in the first hidden layer.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import cli, models, report, scenarios
from maskcl.report.drawing import layer_name, rgb
from maskcl.report.theme import INK, MUTED, SERIES, SHADES

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


def draw(result: dict, plain: np.ndarray, path: Path) -> None:
    """Write the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.3), layout="constrained")
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
    right = figure.add_subplot(grid[0, 2])
    masks = report.decode_masks(result["masks"])
    name, (first, stop) = next(iter(result["masks"]["layers"].items()))
    part = masks[:, first:stop]
    part = part[:, np.lexsort(part[::-1])[::-1]]
    picture = np.ones((*part.shape, 3)) * rgb(SHADES[0])
    for task, mask in enumerate(part):
        picture[task, mask] = rgb(SERIES[task])
    right.imshow(picture, aspect="auto", interpolation="nearest")
    right.set_title(f"who uses the {stop - first} units of {layer_name(name)}")
    right.set_yticks(range(len(part)), [f"task {task}" for task in range(len(part))])
    right.set_xticks([])
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    """Train twice and draw."""
    style = {
        "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.titlesize": 11,
        "axes.edgecolor": "#cbd5e1", "xtick.color": MUTED, "ytick.color": MUTED,
        "grid.color": "#e2e8f0", "axes.spines.top": False, "axes.spines.right": False,
    }  # fmt: skip
    plain = without_masks(scenarios.load("split-digits", seed=SEED))
    with mpl.rc_context(style):
        draw(with_hat(), plain, Path(__file__).with_name("split-digits.png"))


if __name__ == "__main__":
    main()
