"""What plain networks reach: trained on all tasks so far together, and on each task alone.

Intransigence compares a method with the first, transfer from scratch with the second
(`maskcl.metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim import Optimizer

from maskcl.methods import derive_seed
from maskcl.optim import fuse
from maskcl.problems import Problem
from maskcl.randomness import seeded
from maskcl.training.accelerator import make_fabric
from maskcl.training.evaluation import score_task
from maskcl.training.samples import chance

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn import ImportanceNetwork
    from maskcl.scenarios.base import Scenario


@dataclass(frozen=True)
class References:
    """Scores of plain networks. T tasks.

    Attributes:
        together: [T, T], entry (i, j) the score on task j of a network trained on tasks 0 to i
            together; NaN above the diagonal.
        scratch: [T], the score on task j of a network trained on task j alone.
    """

    together: NDArray[np.float64]
    scratch: NDArray[np.float64]

    @property
    def joint(self) -> NDArray[np.float64]:
        """[T], on task j after tasks 0 to j together: what `intransigence` compares with."""
        return self.together.diagonal().copy()

    @property
    def joint_last(self) -> NDArray[np.float64]:
        """[T], after all tasks together: what `forgetting_ratio` compares with."""
        return self.together[-1].copy()


@dataclass(frozen=True)
class _Plan:
    """How every one of the networks is trained."""

    make_net: Callable[[], ImportanceNetwork]
    problem: Problem
    scenario: Scenario
    optimizer_fn: Callable[[list[dict[str, Any]]], Optimizer]
    epochs: int
    batch_size: int
    seed: int
    fabric: Fabric


def references(
    make_net: Callable[[], ImportanceNetwork],
    problem: Problem,
    scenario: Scenario,
    optimizer_fn: Callable[[list[dict[str, Any]]], Optimizer],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32",
    callback: Callable[[str, int, float], None] | None = None,
) -> References:
    """Train 2 T - 1 plain networks and score them.

    All start from the same weights, as ``make_net`` draws them from the seed. One that learns
    several tasks together sees the batches of all in one order, mixed anew in every epoch. A task's
    samples come in the order that `Trainer` gives them. Where the setting hides a sample's task, a
    network chooses among all classes so far, whether it was trained on them or not.

    Args:
        make_net: makes a fresh network with the setting's heads (``to_importance``).
        problem: as the trainer's.
        scenario: the tasks.
        optimizer_fn: parameter groups -> a new optimizer; called once a network.
        epochs: as many for each network, over all samples that it learns from.
        batch_size: samples a step.
        seed: of weights, order and dropout; the result is a function of it alone, and the
            process's own generators stay as they are.
        device: as the trainer's.
        precision: as the trainer's.
        callback: called with ``joint`` or ``scratch``, a task and the score on it.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: a loss is not finite.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"references: {name} is {value!r}, wanted an integer of at least 1")
    fabric = make_fabric(device, precision)
    plan = _Plan(make_net, problem, scenario, optimizer_fn, epochs, batch_size, seed, fabric)
    say = callback or _silent
    count = scenario.num_tasks
    together, scratch = np.full((count, count), np.nan), np.full(count, np.nan)
    for task in range(count):
        together[task, : task + 1] = _scores(plan, list(range(task + 1)))
        say("joint", task, together[task, task])
        # Of the first task, the two are one network.
        scratch[task] = _scores(plan, [task])[-1] if task else together[0, 0]
        say("scratch", task, scratch[task])
    return References(together, scratch)


def _silent(name: str, task: int, score: float) -> None:
    """No progress."""


def _scores(plan: _Plan, tasks: list[int]) -> list[float]:
    """Train a fresh network on some tasks together; its score on each."""
    device = plan.fabric.device
    with seeded(device, derive_seed("reference", plan.seed)):
        net = plan.make_net()
        plan.fabric.to_device(net)
        torch.manual_seed(derive_seed("reference", plan.seed, *tasks))  # of dropout
        _train(plan, net, tasks)
        told = plan.scenario.setting.task_id_at_test
        return [
            score_task(
                net, plan.problem, plan.scenario, plan.fabric, task,
                active=task if told else tasks[-1], batch_size=plan.batch_size,
            )
            for task in tasks
        ]  # fmt: skip


def _train(plan: _Plan, net: ImportanceNetwork, tasks: list[int]) -> None:
    own = {id(p): p for task in tasks for p in net.task_parameters(task)}
    optimizer = plan.optimizer_fn([{"params": list(own.values())}])
    fuse(optimizer)  # the methods' networks step so too
    module, wrapped = plan.fabric.setup(net, optimizer)
    known = plan.scenario.setting.task_id_at_test
    net.train()
    for epoch in range(plan.epochs):
        total = torch.zeros((), dtype=torch.float64, device=plan.fabric.device)
        for task, batch in _batches(plan, tasks, epoch):
            batch = plan.fabric.to_device(batch)
            wrapped.zero_grad()
            with net.task(task if known else tasks[-1]):
                logits, target, weight = plan.problem.forward(module, batch)
                loss = plan.problem.loss(logits, target, weight)
                plan.fabric.backward(loss)
            wrapped.step()
            total += loss.detach()
        if not math.isfinite(total.item()):
            raise RuntimeError(
                f"references: the loss is not finite in epoch {epoch + 1} of tasks {tasks}; try a"
                " smaller learning rate"
            )


def _batches(plan: _Plan, tasks: list[int], epoch: int) -> Iterator[tuple[int, Any]]:
    """An epoch's batches with their tasks, the tasks mixed."""
    loaders, turns = {}, []
    for task in tasks:
        dataset: Any = plan.scenario.train_set(task)
        order = torch.randperm(len(dataset), generator=chance(plan.seed, "shuffle", task, epoch))
        draws = chance(plan.seed, "batches", task, epoch)
        loaders[task] = plan.problem.train_batches(dataset, order, plan.batch_size, draws)
        turns += [task] * plan.problem.num_batches(len(dataset), plan.batch_size)
    mixed = torch.randperm(len(turns), generator=chance(plan.seed, "turns", tasks[-1], epoch))
    for turn in mixed.tolist():
        yield turns[turn], next(loaders[turns[turn]])
