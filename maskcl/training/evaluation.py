"""Scores of a network: predictions from outside, labels inside the scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from maskcl.problems import Problem

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
    latest: int,
    batch_size: int,
    first_task: int = 0,
) -> float:
    """Score on a task's test data, in evaluation; the network's mode is what it was after it.

    Args:
        net: on the fabric's device.
        problem: makes the predictions.
        scenario: scores them.
        fabric: for device and precision.
        task: whose test data.
        latest: the task that the network acts for where the setting hides a sample's own: a
            growing head then chooses among all classes so far.
        batch_size: of training; test batches are of at least ``LEAST_BATCH``.
        first_task: the network's task that the scenario's task 0 is.
    """
    was_training = net.training
    net.eval()
    active = first_task + (task if scenario.setting.task_id_at_test else latest)
    with net.task(active), fabric.autocast():
        inputs = scenario.test_inputs(task)
        predictions = [
            problem.predict(net, fabric.to_device(batch))
            for batch in problem.test_batches(inputs, max(batch_size, LEAST_BATCH))
        ]
    net.train(was_training)
    return float(scenario.score(task, torch.cat(predictions).cpu()))
