"""Split MNIST of Hsu et al. 2018 (arXiv 1810.12488), table 2: Adam, EWC and MAS.

Their code (GT-RIPL/Continual-Learning-Benchmark, read for the protocol): classes 0 1, 2 3, ... 8 9;
images framed to 32x32; an MLP with two hidden layers of 400; one Adam for all tasks, whose moments
are never reset; the penalty is coefficient * sum Omega (W - W*)^2 over all parameters, a shared
head's too. MAS's Omega is |the gradient of the mean over batch and outputs of the squared outputs|,
the mean over batches of 128, summed over tasks. EWC's is the squared gradient of each sample's
log-probability of the predicted class, the mean over samples; every task keeps its own anchor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Adam, Optimizer

from maskcl import models, scenarios
from maskcl.methods import EWC, MAS, derive_seed
from maskcl.nn import to_importance
from maskcl.problems import Vision
from maskcl.randomness import seeded
from maskcl.reproduce.table import Published, Row, Run
from maskcl.scenarios import Scenario
from maskcl.training.trainer import Trainer

TASKS, EPOCHS, BATCH_SIZE, RATE, HIDDEN = 5, 4, 128, 1e-3, (400, 400)
PADDING, MEAN, STD = 2, 0.1000, 0.2752

# Their scripts' coefficients.
MAS_STRENGTH = {"task": 1.0, "domain": 10_000.0}
EWC_STRENGTH = {"task": 100.0, "domain": 100.0}
# Ours for the exact importance: the best mean of three seeds that are not among the ten (100 to
# 102) on the last 10,000 training images, held out then, of five powers of ten each.
EXACT_STRENGTH = {"task": 0.01, "domain": 10_000.0}

PUBLISHED = {
    ("task", "Adam"): (93.46, 2.01),
    ("task", "EWC"): (97.70, 0.81),
    ("task", "MAS"): (99.22, 0.21),
    ("domain", "Adam"): (55.16, 1.38),
    ("domain", "EWC"): (58.85, 2.59),
    ("domain", "MAS"): (68.57, 6.85),
}


def rows_of(setting: str) -> list[Row]:
    """The rows of one setting."""
    found = {name: PUBLISHED[setting, name] for name in ("Adam", "EWC", "MAS")}
    ewc = EWC(EWC_STRENGTH[setting], labels="predicted", heads=True)
    theirs = MAS(MAS_STRENGTH[setting], reduction="batch", norm="mean", heads=True)
    exact = MAS(EXACT_STRENGTH[setting], heads=True)
    return [
        Row(setting, "Adam, no penalty", "-", MAS(0.0, heads=True), found["Adam"]),
        Row(setting, "EWC", "fisher, sample, predicted", ewc, found["EWC"]),
        Row(setting, "MAS, published", "batch, mean", theirs, found["MAS"]),
        Row(setting, "MAS, exact", "sample, sum", exact, found["MAS"]),
    ]


def load(data: str, setting: str) -> Scenario:
    """Split MNIST as they have it.

    Raises:
        ScenarioError: the files are not there, or damaged.
    """
    return scenarios.load(
        "split-mnist",
        data=data,
        tasks=TASKS,
        setting=setting,
        padding=PADDING,
        normalise=(MEAN, STD),
    )


def train(scenario: Scenario, row: Row, seed: int, device: str = "auto") -> Run:
    """One run of a row."""
    outputs = scenario.classes_per_task
    start = time.perf_counter()
    with seeded(torch.device("cpu"), derive_seed("model", seed)):
        model = models.mlp(scenario.input_shape, outputs[0], hidden=HIDDEN)
        own = scenario.setting.head == "task"
        net = to_importance(model, scenario.num_tasks, classes=outputs if own else None)
    trainer = Trainer(
        net,
        row.method,
        Vision(),
        scenario,
        one_optimizer(lambda groups: Adam(groups, lr=RATE, fused=True)),
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        seed=seed,
        device=device,
    )
    result = trainer.fit()
    sizes = {name: p.numel() for name, p in net.model.named_parameters()}
    importance = result.measured("importance")[-1]
    total = sum(mean * sizes[name] for name, mean in importance.items())
    return Run(
        accuracies=[100 * accuracy for accuracy in result.matrix[-1].tolist()],
        importance=total / sum(sizes[name] for name in importance),
        seconds=time.perf_counter() - start,
    )


def one_optimizer(
    make: Callable[[list[dict[str, Any]]], Optimizer],
) -> Callable[[list[dict[str, Any]]], Optimizer]:
    """The same optimizer for every task, moments and all; it takes up what a task brings along."""
    made: list[Optimizer] = []

    def optimizer_of(groups: list[dict[str, Any]]) -> Optimizer:
        if not made:
            made.append(make(groups))
            return made[0]
        known = {id(p) for group in made[0].param_groups for p in group["params"]}
        for group in groups:
            new = [p for p in group["params"] if id(p) not in known]
            if new:
                made[0].add_param_group({**group, "params": new})
        return made[0]

    return optimizer_of


TABLE = Published(
    name="mas-split-mnist",
    title="Split MNIST, 5 x 2 classes (Hsu et al. 2018, arXiv 1810.12488, table 2)",
    protocol={
        "classes": "0 1, 2 3, 4 5, 6 7, 8 9",
        "images": f"framed by {PADDING} to 32x32, mean {MEAN} and std {STD} taken out",
        "model": f"MLP {', '.join(map(str, HIDDEN))}, ReLU",
        "optimizer": f"Adam, learning rate {RATE}, one for all tasks",
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
    },
    rows=[*rows_of("task"), *rows_of("domain")],
    notes=(
        "Mean final test accuracy of the five tasks in percent; ± is the standard deviation over "
        "the seeds (n, as theirs). Published: ten runs.",
        "A strength belongs to its importance, whose mean over the parameters after the last task "
        "stands beside it: batch, mean is |gradient of the mean of batch and outputs| over batches "
        f"of {BATCH_SIZE}; sample, sum is the mean over samples of |gradient of the sum over "
        "outputs|, MAS's equation and maskcl's default; EWC's is the mean over samples of the "
        "squared gradient of the predicted class's log-probability.",
    ),
    load=load,
    train=train,
)
