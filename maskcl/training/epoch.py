"""One epoch of a task: its steps, and what they add up to."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from maskcl.callback import Callbacks
from maskcl.ops import task_progress
from maskcl.training.plan import Plan, Running
from maskcl.training.result import Result
from maskcl.training.validation import larger_for_better, score_held_out


def train_epoch(plan: Plan, run: Running, epoch: int, told: Callbacks) -> tuple[float, float]:
    """All steps of an epoch; the mean loss and training accuracy over its samples."""
    net, method, fabric = plan.net, plan.method, plan.fabric
    steps, scaler, device = plan.steps(run.dataset), plan.scaler, fabric.device
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    correct, count = torch.zeros((), dtype=torch.float64, device=device), 0
    told.tell("on_epoch_start", run.task, epoch, steps)
    net.train()
    batches = iter(plan.samples.epoch(run.task, epoch, run.dataset))
    for i, shares in enumerate(_shares(plan, run.dataset)):
        method.before_step(net, run.state, task_progress(epoch, plan.epochs, i, steps))
        run.optimizer.zero_grad()
        loss, right, samples = _backward(plan, run, batches, shares)
        method.after_backward(net, run.state, scaler=scaler)
        run.optimizer.step()
        method.after_step(net, run.state)
        if run.schedule is not None:
            run.schedule.after_step()
        loss_sum.add_(loss, alpha=samples)
        correct += right
        count += samples
        told.tell("on_step", run.task, epoch, i, loss)
    if next(batches, None) is not None:
        raise _other_number(plan, "more")
    totals = torch.stack([loss_sum, correct, torch.full_like(loss_sum, count)])
    # The epoch's only wait for the device.
    summed: Any = fabric.all_reduce(totals, reduce_op="sum")
    loss_sum, correct, count = summed.tolist()
    return loss_sum / count, correct / count


def record_epoch(
    plan: Plan, run: Running, epoch: int, loss: float, accuracy: float, result: Result
) -> None:
    """Measure what there is after an epoch, step the schedule and put all into the result."""
    result.losses[run.task].append(loss)
    if not math.isnan(accuracy):
        result.accuracies[run.task].append(accuracy)
    if (free := plan.method.free_capacity(plan.net, run.index)) is not None:
        result.free[run.task].append(free)
    score = larger_for_better(accuracy, loss)
    if run.best is not None:
        score, loss = score_held_out(
            plan.net, plan.problem, plan.samples, run.held, run.task, run.index
        )
        run.best.offer(epoch, score, loss)
        result.validation[run.task].append(score)
        result.best_epochs[run.task] = run.best.epoch
    if run.schedule is not None:
        run.schedule.after_epoch(loss, score)


def _other_number(plan: Plan, how: str) -> RuntimeError:
    return RuntimeError(
        f"Trainer: the {plan.problem.name} problem gave {how} batches than its num_batches says"
    )


def _backward(
    plan: Plan, run: Running, batches: Iterator[Any], shares: list[float]
) -> tuple[Tensor, Tensor, int]:
    """Gradients of one step; its loss, the samples predicted right, and all its samples."""
    net, problem, last = plan.net, plan.problem, len(shares) - 1
    parts: list[tuple[Tensor, Tensor, int]] = []
    for at, share in enumerate(shares):
        batch = next(batches, None)
        if batch is None:
            raise _other_number(plan, "fewer")
        with _alone(plan, run, at < last), net.task(run.index, run.state.scale):
            logits, target, weight = problem.forward(run.module, batch)
            loss = problem.loss(logits, target, weight)
            loss = loss if last == 0 else loss * share
            term = plan.method.loss_term(net, run.state) if at == 0 else 0.0
            loss = loss + term if isinstance(term, Tensor) else loss
            if plan.is_wrapped:
                plan.fabric.backward(loss)
            else:
                loss.backward()
        right = problem.correct(logits.detach(), target)
        parts.append((loss.detach(), right, target.shape[0]))
    if last == 0:
        return parts[0]
    losses, rights, sizes = zip(*parts, strict=True)
    return torch.stack(losses).sum(), torch.stack(rights).sum(), sum(sizes)


def _alone(plan: Plan, run: Running, is_more: bool) -> AbstractContextManager[Any]:
    """Before a step's last batch: processes exchange no gradients."""
    if not (plan.is_wrapped and is_more):
        return nullcontext()
    return plan.fabric.no_backward_sync(run.module)  # type: ignore[arg-type]


def _shares(plan: Plan, dataset: Any) -> Iterator[list[float]]:
    """For each step, the shares of its batches in its samples; they add up to 1.

    So that the gradients are those of one batch of all the step's samples, and the same number
    divides them in every process.
    """
    batches = plan.samples.steps(dataset)
    sizes = [plan.samples.batch_size] * batches
    # The last has what is left over.
    sizes[-1] = max(len(dataset) // plan.fabric.world_size - sum(sizes[:-1]), 1)
    for first in range(0, batches, plan.accumulate):
        part = sizes[first : first + plan.accumulate]
        yield [size / sum(part) for size in part]
