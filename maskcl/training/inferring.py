"""Scores where the task is inferred, and how a trainer makes a network ready for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskcl.methods import TaskData
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.network import TaskNetwork
from maskcl.problems import Problem
from maskcl.training.class_labels import ClassLabels
from maskcl.training.evaluation import LEAST_BATCH, score_task
from maskcl.training.inference_scores import InferenceScores

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

    from maskcl.scenarios.base import Scenario
    from maskcl.settings import Setting


class InferredScores:
    """Scores on a scenario's test data whose task nobody tells.

    Args:
        net: with ``net.inference``.
        problem: makes batches.
        scenario: scores predictions.
        fabric: for device and precision.
        labels: where each task's head has its own classes alone.
        data: task -> its training samples, for the scores without a network.
        batch_size: of training.
    """

    def __init__(
        self,
        net: TaskNetwork,
        problem: Problem,
        scenario: Scenario,
        fabric: Fabric,
        labels: ClassLabels | None,
        data: Callable[[int], TaskData],
        batch_size: int,
    ) -> None:
        self.net, self.problem, self.scenario, self.fabric = net, problem, scenario, fabric
        self.labels, self.data, self.batch_size = labels, data, batch_size
        assert net.inference is not None
        is_shared = net.inference.space == "shared"
        self._alone = net.inference if is_shared else _plain(net.inference)

    @torch.no_grad()
    def score(self, trained: int, task: int, into: InferenceScores) -> float:
        """Score on a task's test data after ``trained``; what else is measured goes ``into``."""
        net, inference = self.net, self.net.inference
        assert inference is not None
        self._measure_alone()
        labels, alone, tasks = [], [], []
        with self.fabric.autocast():
            inputs = self.scenario.test_inputs(task)
            for raw in self.problem.test_batches(inputs, max(self.batch_size, LEAST_BATCH)):
                batch = self.fabric.to_device(raw)
                args = (batch,) if isinstance(batch, Tensor) else tuple(batch[:-1])
                found = inference.infer(net, *args)
                nearest = self._alone.nearest(net, *args)
                labels.append(self._named(found.task, found.label))
                alone.append(self._named(nearest.task, nearest.label))
                tasks.append(found.task.cpu())
        inferred = torch.cat(tasks)
        right = float((inferred == task).double().mean())
        into.identified[trained, task] = right
        into.alone[trained, task] = self.scenario.score(task, torch.cat(alone))
        into.confusion[task] = torch.bincount(inferred, minlength=net.num_tasks)[
            : self.scenario.num_tasks
        ].numpy()
        into.told[trained, task] = score_task(
            net, self.problem, self.scenario, self.fabric, task,
            active=task, batch_size=self.batch_size, labels=self.labels,
        )  # fmt: skip
        return float(self.scenario.score(task, torch.cat(labels)))

    def _named(self, task: Tensor, label: Tensor) -> Tensor:
        found = label if self.labels is None else self.labels.of_scenario(task, label)
        return found.cpu()

    def _measure_alone(self) -> None:
        """Statistics of inputs, where the network's are of its features; anew after a resume."""
        for task in torch.nonzero(self.net.finished).flatten().tolist():
            if task not in self._alone.tasks:
                self._alone.measure(self.net, task, self.data(task))


def _plain(inference: TaskInference) -> TaskInference:
    features = inference.features
    found = TaskInference(seed=features.seed, per_sample=features.per_sample)
    return found.to(inference.config.device)


def attach(net: TaskNetwork, problem: Any, inference: TaskInference | None) -> None:
    """Put the inference into the network, and say how the problem's samples are found in rows."""
    net.inference = inference or net.inference
    if net.inference is not None and net.inference.features.per_sample is None:
        net.inference.features.per_sample = getattr(problem, "per_sample", None)


def own_labels(net: TaskNetwork, scenario: Scenario, setting: Setting) -> ClassLabels | None:
    """Labels of heads that have their own task's classes alone; None where none has.

    Raises:
        ValueError: the scenario or the network's heads do not go with inferred tasks.
    """
    if scenario.metric != "accuracy":
        raise ValueError(
            f"Trainer: inference gives labels, and the scenario's metric is {scenario.metric},"
            " wanted accuracy"
        )
    heads = [m for m in net.modules() if isinstance(m, TaskHeads)]
    if setting.name != "class" or not heads:
        return None
    for head in heads:
        found = [inner.out_features for inner in head.heads]  # type: ignore[misc]
        if found[: scenario.num_tasks] != scenario.head_sizes:
            raise ValueError(
                f"Trainer: the network's heads have {found} outputs, wanted {scenario.head_sizes}:"
                " in the class setting, where the task is inferred, each head has its own task's"
                " classes"
            )
    return ClassLabels(scenario.classes, setting)
