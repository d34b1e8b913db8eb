"""Three small tasks, a network for each kind of method, and the loop that is the measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import maskcl
from maskcl import models
from maskcl.methods import TaskData
from maskcl.nn import TaskNetwork

TASKS, SAMPLES, BATCH, EPOCHS = 3, 40, 8, 2
METHODS: dict[str, Callable[[], Any]] = {
    "hat": maskcl.HAT,
    "piggyback": lambda: maskcl.Piggyback(lr=0.01),
    "mas": maskcl.MAS,
    "ewc": maskcl.EWC,
}


def samples(task: int) -> tuple[Tensor, Tensor]:
    """Inputs [40, 8], float32, and labels 0 or 1, in order: Avalanche sorts by label."""
    generator = torch.Generator().manual_seed(task)
    x = torch.randn(SAMPLES, 8, generator=generator)
    y = (x @ torch.randn(8, generator=generator) > 0).long()
    order = y.argsort(stable=True)
    return x[order], y[order]


def network(name: str) -> TaskNetwork:
    """For the method of this name, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = models.mlp((8,), classes=2, hidden=(16, 16))
        if name == "hat":
            return maskcl.nn.to_hat(base, TASKS, torch.zeros(2, 8), classes=[2] * TASKS)
        if name == "piggyback":
            return maskcl.nn.to_piggyback(base, TASKS, classes=[2] * TASKS)
        return maskcl.nn.to_importance(base, TASKS, classes=[2] * TASKS)


def batches(task: int) -> Iterator[tuple[Tensor, Tensor]]:
    """In the order of the samples."""
    x, y = samples(task)
    yield from zip(x.split(BATCH), y.split(BATCH), strict=True)


def learn(method: Any, net: TaskNetwork, task: int, rate: float = 0.01) -> None:
    """A task by a loop as the README has it, with Adam."""
    state = method.begin_task(net, task)
    optimizer = torch.optim.Adam(method.parameter_groups(net, task), lr=rate)
    guard = method.protect(optimizer, net, state)
    steps = SAMPLES // BATCH
    net.train()
    for _ in range(EPOCHS):
        for step, (x, y) in enumerate(batches(task)):
            method.before_step(net, state, maskcl.ops.epoch_progress(step, steps))
            optimizer.zero_grad()
            with net.task(task, state.scale):
                (F.cross_entropy(net(x), y) + method.loss_term(net, state)).backward()
            method.after_backward(net, state)
            optimizer.step()
            method.after_step(net, state)
    method.end_task(net, state, TaskData(lambda: batches(task)))
    if guard is not None:
        guard.remove()


def outputs(net: TaskNetwork, task: int) -> Tensor:
    """Of a task's own samples, in evaluation."""
    net.eval()
    with torch.no_grad(), net.task(task):
        return net(samples(task)[0].to(next(net.parameters()).dtype))


def assert_same_bits(one: nn.Module, other: nn.Module) -> None:
    """Of all parameters and buffers."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
