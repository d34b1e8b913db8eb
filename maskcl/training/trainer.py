"""The one training loop: a sequence of tasks, a method, a problem, a scenario."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.callback import Callback
from maskcl.checkpoint import describe_optimizer
from maskcl.methods import Method, derive_seed
from maskcl.methods.loss_scaling import NOT_SCALED
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.ops import task_progress
from maskcl.problems import Problem
from maskcl.randomness import seeded
from maskcl.settings import get_setting
from maskcl.training.accelerator import make_fabric
from maskcl.training.checks import check_arguments, check_precision
from maskcl.training.content import result_content
from maskcl.training.continuing import first_task_of
from maskcl.training.inferring import attach, own_labels
from maskcl.training.result import Result
from maskcl.training.run_checkpoint import RunCheckpoint, open_run, save_run
from maskcl.training.samples import Samples
from maskcl.training.task_scores import TaskScores

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios.base import Scenario

CHECKPOINT = "checkpoint.safetensors"


@dataclasses.dataclass
class _Running:
    """The task in training."""

    task: int
    dataset: Any
    state: Any
    module: nn.Module  # the network as Fabric wraps it, where Fabric has something to do
    optimizer: Optimizer  # likewise
    guard: Any


class Trainer:
    """Train a network on a scenario's tasks, one after the other.

    Args:
        net: the network; its weights' initialisation is the caller's.
        method: for example ``HAT()`` or ``MAS()``; ``net`` is a network of its kind.
        problem: for example ``Vision()``.
        scenario: the tasks; it keeps the test labels and scores predictions.
        optimizer_fn: parameter groups -> a new optimizer; called once a task. Any class of
            ``torch.optim`` with the arguments it lacks. A group's own ``weight_decay`` (0 for
            what decides about masks) and ``lr`` come before the optimizer's.
        epochs: per task.
        batch_size: samples a step (of this process).
        seed: of shuffling, embeddings and dropout. The order of an epoch depends on
            (seed, task, epoch) alone.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        precision: ``32`` or ``bf16`` (autocast).
        directory: where the checkpoint goes at every epoch's end; None: nowhere.
        callback: progress.
        inference: tells tasks apart at test, in the class, domain and time settings; it becomes
            ``net.inference``. The matrix then has scores where the task is inferred.
        fabric: a launched Fabric of your own, for example with ``strategy="ddp"``; device and
            precision are then its.
        first_task: the network's task that the scenario's task 0 is. Finished tasks are not trained
            again. None: what `first_task_of` finds, or raises where it could be two.

    Raises:
        ValueError: an argument is out of range, or the method refuses the setting.
    """

    def __init__(
        self,
        net: TaskNetwork,
        method: Method,
        problem: Problem,
        scenario: Scenario,
        optimizer_fn: Callable[[list[dict[str, Any]]], Optimizer],
        *,
        epochs: int,
        batch_size: int,
        seed: int = 0,
        device: str = "auto",
        precision: str = "32",
        directory: str | os.PathLike[str] | None = None,
        callback: Callback | None = None,
        inference: TaskInference | None = None,
        fabric: Fabric | None = None,
        first_task: int | None = None,
    ) -> None:
        self.setting = get_setting(scenario.setting)
        is_inferred = check_arguments(
            net, method, problem, scenario, self.setting, inference, epochs, batch_size
        )
        self.net, self.method, self.problem, self.scenario = net, method, problem, scenario
        self.optimizer_fn, self.epochs, self.batch_size = optimizer_fn, epochs, batch_size
        self.seed, self.callback = seed, callback or Callback()
        self.directory = None if directory is None else Path(directory)
        self.fabric = fabric or make_fabric(device, precision)
        # In one process, on one device and in one precision Fabric's wrappers only cost time.
        self._is_wrapped = fabric is not None or precision != "32"
        check_precision(self.fabric, problem)
        attach(net, problem, inference)
        labels = own_labels(net, scenario) if is_inferred else None
        self.samples = Samples(problem, self.fabric, batch_size, seed, labels)
        self._tests = TaskScores(
            net, problem, scenario, self.fabric, self.samples, method.later_tasks_defined,
            is_inferred=is_inferred,
        )  # fmt: skip
        self.first_task = first_task
        self._tests.first = first_task or 0

    @property
    def _first(self) -> int:
        """The network's task that the scenario's task 0 is, as fit has found it."""
        return self._tests.first

    @property
    def checkpoint_path(self) -> Path | None:
        """Where the checkpoint is, or will be."""
        return None if self.directory is None else self.directory / CHECKPOINT

    def fit(self, resume: bool = False) -> Result:
        """Train all tasks that are not finished.

        In the result's matrix a row before the first task trained here is not measured, but for
        the last such: the network as it came.

        Args:
            resume: go on from the directory's checkpoint; from the start if there is none yet.

        Raises:
            CheckpointError: the checkpoint is damaged or of a run with other arguments.
            FileExistsError: there is a checkpoint and ``resume`` is False.
            RuntimeError: the loss is not finite, or all tasks are finished.
            ValueError: it is not clear which of the network's tasks the scenario's are.
        """
        saved = open_run(self.checkpoint_path, self.config, resume=resume)
        with seeded(self.fabric.device, derive_seed("run", self.seed, self.fabric.global_rank)):
            self.fabric.to_device(self.net)
            first = self._start(saved)
            for task in range(first, self.scenario.num_tasks):
                inside = saved is not None and task == saved.task and saved.epoch > 0
                if self._tests.finished()[task]:
                    self._pass_over(task)
                else:
                    self._train_task(task, saved if inside else None)
        result = self.result
        return result.described_by(lambda: result_content(self, result))

    def _start(self, saved: RunCheckpoint | None) -> int:
        """The task to begin with, everything that was saved taken up."""
        if saved is None:
            has_own = self.samples.labels is not None
            self._tests.first = first_task_of(
                self.net, self.scenario, self.first_task, own_classes=has_own
            )
            self.result = Result.empty(self.scenario.num_tasks)
            self.result.inference = self._tests.start()
            is_new = ~np.array(self._tests.finished())
            self.result.untrained[is_new] = np.array(self._tests.row(-1))[is_new]
            return 0
        saved.check_first_task(self.first_task)
        self._tests.first = saved.first_task
        if saved.epoch > 0:  # what exists only while a task trains is in the checkpoint
            self.method.begin_task(self.net, self._first + saved.task, seed=self.seed)
        saved.restore(self.net, self.fabric.device)
        empty = self._tests.start()
        self.result = saved.result
        if self.result.inference is None:  # a run that goes on from another begins with a blank
            self.result.inference = empty
        return saved.task

    def _pass_over(self, task: int) -> None:
        """Leave a finished task; score what there is where another is trained next."""
        done = self._tests.finished()
        if not all(done[task : task + 2]) or task + 1 == len(done):
            self.result.matrix[task] = self._tests.row(task, self.result.inference)

    def _train_task(self, task: int, saved: RunCheckpoint | None) -> None:
        running = self._begin_task(task, saved)
        first_epoch = 0 if saved is None else saved.epoch
        self._tests.latest = task
        self.callback.on_task_start(task, self.epochs, first_epoch)
        for epoch in range(first_epoch, self.epochs):
            start = time.perf_counter()
            self._train_epoch(running, epoch)
            last = epoch + 1 == self.epochs
            if last:
                self._end_task(running)
            self.result.seconds[task] += time.perf_counter() - start
            self._save(running, (task + 1, 0) if last else (task, epoch + 1))
        self.callback.on_task_end(task, self.result.matrix[task].copy())

    def _begin_task(self, task: int, saved: RunCheckpoint | None) -> _Running:
        dataset: Any = self.scenario.train_set(task)
        state = self.method.begin_task(self.net, self._first + task, seed=self.seed)
        optimizer = self.optimizer_fn(self.method.parameter_groups(self.net, self._first + task))
        if saved is None:
            steps = self.epochs * self.samples.steps(dataset)
            self.method.check_plan(self.net, state, optimizer, steps)
        else:
            # begin_task has renewed what the interrupted task had already trained.
            saved.restore(self.net, self.fabric.device, state, optimizer)
        guard = self.method.protect(optimizer, self.net, state)
        if not self._is_wrapped:
            return _Running(task, dataset, state, self.net, optimizer, guard)
        module, wrapped = self.fabric.setup(self.net, optimizer)
        return _Running(task, dataset, state, module, wrapped, guard)

    def _train_epoch(self, run: _Running, epoch: int) -> None:
        net, method, problem = self.net, self.method, self.problem
        batches, scaler = self.samples.steps(run.dataset), self._scaler
        device, count = self.fabric.device, 0
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        self.callback.on_epoch_start(run.task, epoch, batches)
        net.train()
        for i, batch in enumerate(self.samples.epoch(run.task, epoch, run.dataset)):
            progress = task_progress(epoch, self.epochs, i, batches)
            method.before_step(net, run.state, progress)
            run.optimizer.zero_grad()
            with net.task(self._first + run.task, run.state.scale):
                logits, target, weight = problem.forward(run.module, batch)
                loss = problem.loss(logits, target, weight)
                term = method.loss_term(net, run.state)
                loss = loss + term if isinstance(term, Tensor) else loss
                if self._is_wrapped:
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
            self.callback.on_step(run.task, epoch, i, loss)
        totals = torch.stack([loss_sum, correct.double(), torch.full_like(loss_sum, count)])
        self._end_epoch(run, epoch, totals)

    @property
    def _scaler(self) -> Any:
        """The GradScaler of a Fabric with float16, one that does nothing for any other."""
        return getattr(self.fabric.strategy.precision, "scaler", None) or NOT_SCALED

    def _end_epoch(self, run: _Running, epoch: int, totals: Tensor) -> None:
        task = run.task
        # The epoch's only wait for the device.
        summed: Any = self.fabric.all_reduce(totals, reduce_op="sum")
        loss_sum, correct, count = summed.tolist()
        loss, accuracy = loss_sum / count, correct / count
        if not math.isfinite(loss):
            raise RuntimeError(
                f"Trainer: the loss is {loss} in task {task}, epoch {epoch};"
                " try a smaller learning rate"
                f"{self.method.explain_divergence(self.net, run.optimizer)}"
            )
        self.result.losses[task].append(loss)
        self.result.accuracies[task].append(accuracy)
        outlook = self.method.outlook(self.net, self._first + task)
        self.callback.on_epoch_end(task, epoch, loss, accuracy, outlook)

    def _end_task(self, run: _Running) -> None:
        self.method.end_task(self.net, run.state, self.samples.task_data(run.task, run.dataset))
        if run.guard is not None:
            run.guard.remove()
        self.result.matrix[run.task] = self._tests.row(run.task, self.result.inference)
        self.result.measures.append(self.method.measure(self.net, self._first + run.task))

    def evaluate(self, task: int) -> float:
        """Score on a task's test data in [0, 1], with its hard mask.

        Where the setting hides the task at test, it is inferred, if the network has an inference
        and a finished task; else the network is as the latest task sees it: a growing head chooses
        among all classes so far. Before ``fit`` the scenario's task 0 is the network's
        ``first_task``, or 0.
        """
        return self._tests.of(task)

    def _save(self, run: _Running, position: tuple[int, int]) -> None:
        if (path := self.checkpoint_path) is not None and self.fabric.is_global_zero:
            device = self.fabric.device
            save_run(
                path, self.config, (*position, self._first), self.net, self.result, device,
                run.state, run.optimizer,
            )  # fmt: skip

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """All that the result depends on, as a JSON object."""
        method: Any = self.method
        optimizer = self.optimizer_fn(self.method.parameter_groups(self.net, 0))
        groups = describe_optimizer(optimizer)
        inference = self.net.inference
        beside = {} if inference is None else {"inference": inference.arguments()}
        return {
            **beside,
            "method": {"name": type(method).__name__, **dataclasses.asdict(method)},
            "problem": self.problem.describe(),
            "setting": self.setting.name,
            "scenario": self.scenario.describe(),
            "optimizer": {"name": type(optimizer).__name__, "groups": groups},
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "seed": self.seed,
            "precision": type(self.fabric.strategy.precision).__name__,
            "processes": self.fabric.world_size,
        }
