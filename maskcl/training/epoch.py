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
from maskcl.training.epoch_sums import EpochSums
from maskcl.training.plan import Plan, Running
from maskcl.training.processes import share_running
from maskcl.training.result import Result
from maskcl.training.samples import Share
from maskcl.training.validation import larger_for_better, score_held_out


def train_epoch(plan: Plan, run: Running, epoch: int, told: Callbacks) -> tuple[float, float]:
    """All steps of an epoch; the mean loss and training accuracy over its samples."""
    net, method, fabric = plan.net, plan.method, plan.fabric
    steps, scaler = plan.steps(run.dataset), plan.scaler
    sums = EpochSums(plan.problem, fabric.device)
    told.tell("on_epoch_start", run.task, epoch, steps)
    net.train()
    batches = iter(plan.samples.epoch(run.task, epoch, run.dataset))
    shares = plan.samples.shares(run.dataset)
    for i in range(steps):
        step = shares[i * plan.accumulate : (i + 1) * plan.accumulate]
        method.before_step(net, run.state, task_progress(epoch, plan.epochs, i, steps))
        run.optimizer.zero_grad()
        loss = _backward(plan, run, batches, step, sums)
        method.after_backward(net, run.state, scaler=scaler)
        run.optimizer.step()
        method.after_step(net, run.state)
        if run.schedule is not None:
            run.schedule.after_step()
        told.tell("on_step", run.task, epoch, i, loss)
    share_running(fabric, net)
    if next(batches, None) is not None:
        raise _other_number(plan, "more")
    # The epoch's only wait for the device.
    summed: Any = fabric.all_reduce(sums.totals(), reduce_op="sum")
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
    plan: Plan, run: Running, batches: Iterator[Any], step: list[Share], sums: EpochSums
) -> Tensor:
    """Gradients of one step; its loss, 0-d.

    They are of this process; they are so weighted that the mean over processes is that of one batch
    of all the step's samples.
    """
    net, problem, last = plan.net, plan.problem, len(step) - 1
    total, world = sum(share.batch for share in step), plan.fabric.world_size
    term: Tensor | float = 0.0
    parts: list[tuple[Tensor, int]] = []
    counted = 0
    for at, share in enumerate(step):
        batch = next(batches, None)
        if batch is None:
            raise _other_number(plan, "fewer")
        with _alone(plan, run, at < last), net.task(run.index, run.state.scale):
            logits, target, weight = problem.forward(run.module, batch)
            loss = problem.loss(logits, target, weight)
            factor = share.own * world / total
            weighted = loss if factor == 1 else loss * factor
            if at == 0:
                term = plan.method.loss_term(net, run.state)
                weighted = weighted + term if isinstance(term, Tensor) else weighted
            if plan.is_wrapped:
                plan.fabric.backward(weighted)
            else:
                weighted.backward()
        size = target.shape[0]
        if share.is_counted:
            sums.add_outputs(logits.detach(), target)
            counted += size
        if factor == 1:  # the step's only batch: the loss is there
            sums.add_loss(weighted := weighted.detach(), counted)
            return weighted
        parts.append((loss.detach(), size))
    mean = parts[0][0]
    if last > 0:
        samples = sum(size for _, size in parts)
        mean = torch.stack([x * (size / samples) for x, size in parts]).sum()
    mean = mean + term.detach() if isinstance(term, Tensor) else mean
    sums.add_loss(mean, counted)
    return mean


def _alone(plan: Plan, run: Running, is_more: bool) -> AbstractContextManager[Any]:
    """Before a step's last batch: processes exchange no gradients."""
    if not (plan.is_wrapped and is_more):
        return nullcontext()
    return plan.fabric.no_backward_sync(run.module)  # type: ignore[arg-type]
