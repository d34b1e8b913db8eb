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
from maskcl.training.processes import in_order, in_turn
from maskcl.training.samples import Samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

    from maskcl.scenarios.base import Scenario


class InferredScores:
    """Scores on a scenario's test data whose task nobody tells.

    Args:
        net: with ``net.inference``.
        problem: makes batches.
        scenario: scores predictions.
        fabric: for device and precision.
        samples: of training: their batch size, how they are read, and labels where each task's
            head has its own classes alone.
        data: task -> its training samples, for the scores without a network.
    """

    def __init__(
        self,
        net: TaskNetwork,
        problem: Problem,
        scenario: Scenario,
        fabric: Fabric,
        samples: Samples,
        data: Callable[[int], TaskData],
    ) -> None:
        self.net, self.problem, self.scenario, self.fabric = net, problem, scenario, fabric
        self.labels, self.data, self.batch_size = samples.labels, data, samples.batch_size
        self.loader = samples.loader
        assert net.inference is not None
        self._first = 0
        is_shared = net.inference.space == "shared"
        self._alone = net.inference if is_shared else _plain(net.inference)

    def start(self, first_task: int) -> None:
        """Say which of the network's tasks the scenario's task 0 is; measure what is finished.

        Raises:
            ValueError: a task that is none of the scenario's is finished and was not measured.
        """
        self._first, inference = first_task, self.net.inference
        assert inference is not None
        for task in self._finished():
            if task in inference.tasks:
                continue
            if not 0 <= task - first_task < self.scenario.num_tasks:
                raise ValueError(
                    f"Trainer: task {task} is finished and was not measured, so that no sample can"
                    " be told to be of it: net.measure_task(task, data) does it"
                )
            self.net.measure_task(task, self.data(task - first_task))

    @torch.no_grad()
    def score(self, trained: int, task: int, into: InferenceScores) -> float:
        """Score on a task's test data after ``trained``; what else is measured goes ``into``."""
        net, inference = self.net, self.net.inference
        assert inference is not None
        self._measure_alone()
        with self.fabric.autocast():
            inputs = self.loader.of(self.scenario.test_inputs(task))
            batches = self.problem.test_batches(inputs, max(self.batch_size, LEAST_BATCH))
            found = [
                self._found(self.fabric.to_device(batch)) for batch in in_turn(self.fabric, batches)
            ]
        tasks, labels, alone = zip(*in_order(self.fabric, found), strict=True)
        inferred = torch.cat(tasks)
        into.identified[trained, task] = float((inferred == task).double().mean())
        if self._alone.tasks == inference.tasks:
            into.alone[trained, task] = self.scenario.score(task, torch.cat(alone))
        count = self.scenario.num_tasks
        own = inferred[(inferred >= 0) & (inferred < count)]
        into.confusion[task] = torch.bincount(own, minlength=count).numpy()
        into.told[trained, task] = score_task(
            net, self.problem, self.scenario, self.fabric, task,
            active=self._first + task, batch_size=self.batch_size, labels=self.labels,
            loader=self.loader,
        )  # fmt: skip
        return float(self.scenario.score(task, torch.cat(labels)))

    def _found(self, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """A batch's tasks, labels, and labels without a network where there are such."""
        net, inference = self.net, self.net.inference
        assert inference is not None
        args = (batch,) if isinstance(batch, Tensor) else tuple(batch[:-1])
        found, alone = inference.infer(net, *args), None
        if self._alone.tasks == inference.tasks:
            nearest = self._alone.nearest(net, *args)
            alone = self._named(nearest.task, nearest.label)
        return found.task.cpu() - self._first, self._named(found.task, found.label), alone

    def _named(self, task: Tensor, label: Tensor) -> Tensor:
        """The scenario's labels; -1, which is never right, of tasks that are none of its own."""
        own = task - self._first
        is_own = (own >= 0) & (own < self.scenario.num_tasks)
        if self.labels is not None:
            label = self.labels.of_scenario(torch.where(is_own, own, 0), label)
        return torch.where(is_own, label, -1).cpu()

    def _finished(self) -> list[int]:
        found: list[int] = torch.nonzero(self.net.finished).flatten().tolist()
        return found

    def _measure_alone(self) -> None:
        """Statistics of inputs, where the network's are of its features; anew after a resume."""
        for task in self._finished():
            own = task - self._first
            if task not in self._alone.tasks and 0 <= own < self.scenario.num_tasks:
                self._alone.measure(self.net, task, self.data(own))


def _plain(inference: TaskInference) -> TaskInference:
    features = inference.features
    found = TaskInference(seed=features.seed, per_sample=features.per_sample)
    return found.to(inference.config.device)


def attach(net: TaskNetwork, problem: Any, inference: TaskInference | None) -> None:
    """Put the inference into the network, and say how the problem's samples are found in rows.

    Raises:
        ValueError: the network has not what it measures.
    """
    if inference is not None:
        net.check_space(inference.space)
        _put(net, inference)
    if net.inference is not None and net.inference.features.per_sample is None:
        net.inference.features.per_sample = getattr(problem, "per_sample", None)


def _put(net: TaskNetwork, inference: TaskInference) -> None:
    """Give a network its inference; one that has measured tasks in the same way stays."""
    there = net.inference
    if there is None or there is inference or not there.tasks:
        net.inference = inference
        return
    if there.arguments() != inference.arguments():
        raise ValueError(
            f"Trainer: inference was made with {inference.arguments()}, wanted"
            f" {there.arguments()}, by which tasks {there.tasks} of the network were measured"
        )
    there.features.per_sample = inference.features.per_sample or there.features.per_sample


def own_labels(net: TaskNetwork, scenario: Scenario) -> ClassLabels | None:
    """Labels of heads that have their own task's classes alone; None where none has.

    Raises:
        ValueError: the scenario's metric needs more than labels.
    """
    if scenario.metric != "accuracy":
        raise ValueError(
            f"Trainer: inference gives labels, and the scenario's metric is {scenario.metric},"
            " wanted accuracy"
        )
    has_heads = any(isinstance(module, TaskHeads) for module in net.modules())
    is_counted = scenario.setting.name == "class" and has_heads
    return ClassLabels(scenario.classes, scenario.setting) if is_counted else None
