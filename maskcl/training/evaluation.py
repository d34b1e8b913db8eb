"""Scores of a network: predictions from outside, labels inside the scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from maskcl.problems import Problem
from maskcl.problems.loading import Loader
from maskcl.training.class_labels import ClassLabels
from maskcl.training.processes import in_order, in_turn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios.base import Scenario

# Of test batches; without gradients more fit than in training.
LEAST_BATCH = 512


@torch.no_grad()
def score_task(
    net: TaskNetwork,
    problem: Problem,
    scenario: Scenario,
    fabric: Fabric,
    task: int,
    *,
    active: int,
    batch_size: int,
    labels: ClassLabels | None = None,
    loader: Loader | None = None,
) -> float:
    """Score on a task's test data, in evaluation; the network's mode is what it was after it.

    Processes that share a run take test batches in turn; each has the score.

    Args:
        net: on the fabric's device.
        problem: makes the predictions.
        scenario: scores them.
        fabric: for device and precision.
        task: whose test data.
        active: the network's task that it acts for.
        batch_size: of training; test batches are of at least ``LEAST_BATCH``.
        labels: where that task's head has its own classes alone.
        loader: reads test samples that are not in memory.
    """
    was_training = net.training
    net.eval()
    with net.task(active), fabric.autocast():
        inputs = (loader or Loader()).of(scenario.test_inputs(task))
        predictions = [
            problem.predict(net, fabric.to_device(batch))
            for batch in in_turn(fabric, problem.test_batches(inputs, max(batch_size, LEAST_BATCH)))
        ]
    net.train(was_training)
    if fabric.world_size > 1:
        predictions = in_order(fabric, [found.cpu() for found in predictions])
    found = torch.cat(predictions)
    found = found if labels is None else labels.of_scenario(task, found)
    return float(scenario.score(task, found.cpu()))
