"""A step of the Trainer beside one of one's own loop, `python -m benchmarks.trainer_steps`.

HAT's second task on an MLP 64-200-200-2, batch 16, fused AdamW, one thread. Both train a copy of
the same network on the same samples, an epoch each in turn, in one process; medians over epochs of
the time a step takes, with its batch. The loop is the quick start's; it measures nothing.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import maskcl
from benchmarks.__main__ import commit, processor
from maskcl.bench import OPTIMIZERS
from maskcl.bench.networks import mlp
from maskcl.callback import Callback
from maskcl.ops import task_progress
from maskcl.problems import Vision
from maskcl.scenarios import from_datasets
from maskcl.training.trainer import Trainer

BATCH, BATCHES, EPOCHS = 16, 100, 30
CLASSES = [2, 2]


def adamw(groups: Any) -> torch.optim.Optimizer:
    return OPTIMIZERS["adamw"](groups, fused=True)


def samples() -> TensorDataset:
    """A task's."""
    count = BATCH * BATCHES
    return TensorDataset(torch.rand(count, 64), torch.randint(0, 2, (count,)))


def network() -> maskcl.nn.HATNetwork:
    return maskcl.nn.to_hat(mlp([64, 200, 200, 2]), 2, torch.rand(2, 64), classes=CLASSES)


class OwnLoop:
    """The quick start's loop over the second task of a network."""

    def __init__(self, data: TensorDataset) -> None:
        self.net, self.method, self.data = network().train(), maskcl.HAT(), data
        self.net.finish_task(0)
        self.state = self.method.begin_task(self.net, 1)
        groups = self.method.parameter_groups(self.net, 1)
        self.optimizer = adamw(groups)
        self.method.protect(self.optimizer, self.net, self.state)

    def epoch(self, epoch: int) -> float:
        """Seconds a step."""
        net, method, state, optimizer = self.net, self.method, self.state, self.optimizer
        x, y = self.data.tensors
        start = time.perf_counter()
        order = torch.randperm(len(x)).split(BATCH)
        for i, rows in enumerate(order):
            method.before_step(net, state, task_progress(epoch, EPOCHS, i, len(order)))
            optimizer.zero_grad()
            with net.task(1, state.scale):
                loss = F.cross_entropy(net(x[rows]), y[rows]) + method.loss_term(net, state)
                loss.backward()
            method.after_backward(net, state)
            optimizer.step()
            method.after_step(net, state)
        return (time.perf_counter() - start) / len(order)


class Watch(Callback):
    """Times the second task's epochs; runs one of the own loop between them."""

    def __init__(self, loop: OwnLoop) -> None:
        self.loop, self.start = loop, 0.0
        self.own: list[float] = []
        self.theirs: list[float] = []

    def on_epoch_start(self, task: int, epoch: int, batches: int) -> None:
        if task == 1:
            self.own.append(self.loop.epoch(epoch))
        self.start = time.perf_counter()

    def on_epoch_end(self, task: int, *rest: Any) -> None:
        if task == 1:
            self.theirs.append((time.perf_counter() - self.start) / BATCHES)


def main() -> None:
    """Print a line."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tasks = [(samples(), samples()) for _ in CLASSES]
    scenario = from_datasets(tasks, setting="task")
    watch = Watch(OwnLoop(tasks[1][0]))
    Trainer(
        network(),
        maskcl.HAT(),
        Vision(),
        scenario,
        adamw,
        epochs=EPOCHS,
        batch_size=BATCH,
        callback=watch,
        progress=False,
    ).fit()
    own, trainer = (1e6 * statistics.median(times) for times in (watch.own, watch.theirs))
    print(f"{processor()}, torch {torch.__version__}, threads 1, commit {commit()}")
    print(f"own loop {own:.0f} us a step, Trainer {trainer:.0f} us: {trainer / own:.2f}")


if __name__ == "__main__":
    main()
