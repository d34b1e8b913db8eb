"""One epoch of a task: its steps, and what they add up to."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.callback import Callback
from maskcl.methods import Method
from maskcl.methods.loss_scaling import NOT_SCALED
from maskcl.ops import task_progress
from maskcl.problems import Problem
from maskcl.training.samples import Samples

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn.tasks.network import TaskNetwork


@dataclasses.dataclass
class Running:
    """The task in training.

    Attributes:
        task: of the scenario.
        index: the same task's number in the network.
        dataset: what it is trained on.
        state: the method's.
        module: the network as Fabric wraps it, where Fabric has something to do.
        optimizer: likewise.
        guard: what keeps the optimizer off earlier tasks; has ``remove()``, or is None.
    """

    task: int
    index: int
    dataset: Any
    state: Any
    module: nn.Module
    optimizer: Optimizer
    guard: Any


@dataclasses.dataclass(frozen=True)
class Epochs:
    """How every epoch is trained.

    Attributes:
        net: the network.
        method: whose hooks each step calls.
        problem: makes outputs, loss and predictions of a batch.
        samples: batches in the order of the seed.
        fabric: device, precision and other processes.
        count: epochs of a task.
        is_wrapped: whether ``Running.module`` and ``.optimizer`` are Fabric's.
    """

    net: TaskNetwork
    method: Method
    problem: Problem
    samples: Samples
    fabric: Fabric
    count: int
    is_wrapped: bool

    def train(self, run: Running, epoch: int, callback: Callback) -> tuple[float, float]:
        """All steps of an epoch; the mean loss and training accuracy over its samples."""
        net, method, problem = self.net, self.method, self.problem
        batches, scaler = self.samples.steps(run.dataset), self.scaler
        device, count = self.fabric.device, 0
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        callback.on_epoch_start(run.task, epoch, batches)
        net.train()
        for i, batch in enumerate(self.samples.epoch(run.task, epoch, run.dataset)):
            method.before_step(net, run.state, task_progress(epoch, self.count, i, batches))
            run.optimizer.zero_grad()
            with net.task(run.index, run.state.scale):
                logits, target, weight = problem.forward(run.module, batch)
                loss = problem.loss(logits, target, weight)
                term = method.loss_term(net, run.state)
                loss = loss + term if isinstance(term, Tensor) else loss
                if self.is_wrapped:
                    self.fabric.backward(loss)
                else:
                    loss.backward()
            method.after_backward(net, run.state, scaler=scaler)
            run.optimizer.step()
            method.after_step(net, run.state)
            loss = loss.detach()
            loss_sum.add_(loss, alpha=target.shape[0])
            correct += (problem.predictions(logits.detach()) == target).count_nonzero()
            count += target.shape[0]
            callback.on_step(run.task, epoch, i, loss)
        totals = torch.stack([loss_sum, correct.double(), torch.full_like(loss_sum, count)])
        # The epoch's only wait for the device.
        summed: Any = self.fabric.all_reduce(totals, reduce_op="sum")
        loss_sum, correct, count = summed.tolist()
        return loss_sum / count, correct / count

    @property
    def scaler(self) -> Any:
        """The GradScaler of a Fabric with float16, one that does nothing for any other."""
        return getattr(self.fabric.strategy.precision, "scaler", None) or NOT_SCALED
