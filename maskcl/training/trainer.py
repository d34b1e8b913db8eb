"""The one training loop: a sequence of tasks, a method, a problem, a scenario."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from maskcl.callback import Callback, Callbacks
from maskcl.checkpoint import CheckpointError, give_up
from maskcl.collective import everyones, together
from maskcl.lock import locked
from maskcl.methods import Method, PlanWarning, derive_seed
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.problems import Problem
from maskcl.progress import display
from maskcl.randomness import rng_state, seeded
from maskcl.settings import get_setting
from maskcl.training.accelerator import make_fabric
from maskcl.training.checks import (
    check_arguments,
    check_kinds,
    check_numbers,
    check_options,
    check_plan,
    check_precision,
)
from maskcl.training.content import result_content
from maskcl.training.continuing import first_task_of
from maskcl.training.epoch import record_epoch, train_epoch
from maskcl.training.inferring import attach, own_labels
from maskcl.training.plan import Plan, Running
from maskcl.training.processes import check_same, naming_the_lost
from maskcl.training.result import Result
from maskcl.training.run_checkpoint import RunCheckpoint, open_run, put_back, save_run
from maskcl.training.run_config import describe
from maskcl.training.samples import Samples, loader_of
from maskcl.training.schedules import SchedulerFn
from maskcl.training.task_scores import TaskScores
from maskcl.training.validation import Validation

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios.base import Scenario

CHECKPOINT = "checkpoint.safetensors"


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
        batch_size: samples a batch (of this process).
        seed: of shuffling, embeddings and dropout. The order of an epoch depends on
            (seed, task, epoch) alone.
        device: ``auto`` (CUDA where there is one), ``cpu`` or ``cuda``.
        precision: ``32``, ``bf16`` (autocast) or, on CUDA, ``16`` (float16 with a scaled loss).
        directory: where the checkpoint goes at every epoch's end; None: nowhere.
        callback: one or several; they get this trainer.
        progress: show on standard error how far it is: a bar on a terminal, else lines.
        inference: tells tasks apart at test, in the class, domain and time settings; it becomes
            ``net.inference``. The matrix then has scores where the task is inferred.
        fabric: a launched Fabric of your own, for example with ``strategy="ddp"``; device and
            precision are then its. Processes that share a run are as one with batches of all their
            samples: docs/scaling.md.
        first_task: the network's task that the scenario's task 0 is. Finished tasks are not trained
            again. None: what `first_task_of` finds, or raises where it could be two.
        scheduler_fn: optimizer -> a new scheduler of ``torch.optim.lr_scheduler``; called once a
            task. With two arguments it is told how often the scheduler will be stepped, too.
        schedule_by: ``epoch`` or ``step``, after which the scheduler is stepped. A
            ``ReduceLROnPlateau`` gets the loss of validation, else of training; with
            ``mode="max"`` the score.
        validation: holds samples out of each task's training, a `Validation` or its share: the task
            ends with its best epoch, and early where there is a patience.
        evaluate: which tasks are tested after each: ``all`` up to it; ``last``, it alone, and all
            after the last; a number N, all after every N tasks and after the last. What is not
            tested is NaN in the matrix.
        accumulate: batches a step, whose gradients are those of one batch of all their samples
            (but for BatchNorm, which sees each batch by itself).
        workers: processes that read samples while the network trains, where samples are read one by
            one (files); 0 reads them in between. The result is the same for any number.

    Raises:
        TypeError: an argument is of another kind: a class for an object, an object for a function.
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
        callback: Callback | Sequence[Callback] | None = None,
        progress: bool = True,
        inference: TaskInference | None = None,
        fabric: Fabric | None = None,
        first_task: int | None = None,
        scheduler_fn: SchedulerFn | None = None,
        schedule_by: str = "epoch",
        validation: Validation | float | None = None,
        evaluate: str | int = "all",
        accumulate: int = 1,
        workers: int = 0,
    ) -> None:
        check_kinds(net, method, problem, scenario, optimizer_fn, scheduler_fn)
        check_numbers(epochs=epochs, batch_size=batch_size, accumulate=accumulate)
        check_options(seed, directory, progress, fabric)
        self.setting = get_setting(scenario.setting)
        is_inferred = check_arguments(net, method, problem, scenario, self.setting, inference)
        self.net, self.method, self.problem, self.scenario = net, method, problem, scenario
        self.optimizer_fn, self.epochs, self.batch_size = optimizer_fn, epochs, batch_size
        self.scheduler_fn, self.schedule_by = scheduler_fn, schedule_by
        self.validation = Validation.of(validation)
        self.accumulate = accumulate
        self.seed, self.progress = seed, progress
        self.callback = Callback() if callback is None else callback
        self.directory = None if directory is None else Path(directory)
        self.fabric = make_fabric(device, precision) if fabric is None else fabric
        self._told = Callbacks(self._callbacks())
        # In one process, on one device and in one precision Fabric's wrappers only cost time.
        self._is_wrapped = fabric is not None or precision != "32"
        check_plan(schedule_by, self.validation, evaluate, scenario)
        check_precision(self.fabric, problem)
        attach(net, problem, inference)
        labels = own_labels(net, scenario) if is_inferred else None
        loader = loader_of(problem, scenario, self.fabric, workers)
        self.samples = Samples(problem, self.fabric, batch_size, seed, labels, loader)
        self._tests = TaskScores(
            net, problem, scenario, self.fabric, self.samples, method.later_tasks_defined,
            evaluate, is_inferred=is_inferred,
        )  # fmt: skip
        self.first_task = first_task
        self._made: dict[str, Any] = {}
        # The run that is gone on with and the network before it, until the first optimizer is made.
        self._resumed: tuple[RunCheckpoint, dict[str, Tensor]] | None = None
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
            RuntimeError: the loss is not finite, or all tasks are finished; of processes that share
                the run one has ended, or holds another network when a task has ended.
            ValueError: it is not clear which of the network's tasks the scenario's are.
            LockedError: another process or thread trains in the directory.
        """
        fabric = self.fabric
        with contextlib.ExitStack() as stack:
            stack.enter_context(naming_the_lost(fabric))
            with together(fabric.world_size):  # before anything is trained
                stack.enter_context(locked(self.directory if fabric.is_global_zero else None))
                saved = open_run(self.checkpoint_path, self._given, resume=resume)
            self._check_position(saved)
            if not fabric.is_global_zero:  # it is said once
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore", PlanWarning)
            return self._fit(saved, resume)

    def _check_position(self, saved: RunCheckpoint | None) -> None:
        """Raise CheckpointError unless all processes go on from the same."""
        places = everyones(
            self.fabric.world_size, None if saved is None else saved.content.position
        )
        if any(place != places[0] for place in places):
            raise CheckpointError(
                f"{self.directory} is not the same for all processes: their checkpoints are at"
                f" {places}; wanted a folder that they share"
            )

    def _fit(self, saved: RunCheckpoint | None, resume: bool) -> Result:
        shown = [display()] if self.progress and self.fabric.is_global_zero else []
        self._told = Callbacks([*self._callbacks(), *shown], self)
        chance = derive_seed("run", self.seed, self.fabric.global_rank)
        with self._told, self.samples.loader, seeded(self.fabric.device, chance):
            self._told.tell("on_fit_start", resume)
            self.fabric.to_device(self.net)
            first = self._start(saved)
            for task in range(first, self.scenario.num_tasks):
                inside = saved is not None and task == saved.task and saved.epoch > 0
                if self._tests.finished()[task]:
                    self._pass_over(task)
                else:
                    self._train_task(task, saved if inside else None)
            if self._resumed is not None:  # no task was left to train
                self._made = self._resumed[0].made
            result = self.result.described_by(lambda: result_content(self, self.result))
            self._resumed = None
            self._told.tell("on_fit_end", result)
        return result

    def _callbacks(self) -> list[Callback]:
        """Those given, as a list; ``callback`` may be set anew before fit."""
        given: Any = self.callback
        parts = list(given) if isinstance(given, (list, tuple)) else [given]
        return [c for c in parts if self.fabric.is_global_zero or not getattr(c, "is_once", False)]

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
        self._resumed = saved, {name: t.clone() for name, t in self.net.state_dict().items()}
        give_up(self.net, self._first + saved.task)
        if saved.epoch > 0:  # what exists only while a task trains is in the checkpoint
            self.method.begin_task(self.net, self._first + saved.task, seed=self.seed)
        saved.restore(
            self.net, self.fabric.device, scaler=self._plan.scaler, rank=self.fabric.global_rank
        )
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
        self._told.tell("on_task_start", task, self.epochs, first_epoch)
        for epoch in range(first_epoch, self.epochs):
            start = time.perf_counter()
            self._train_epoch(running, epoch)
            last = self._plan.is_last(running, epoch)
            if last:
                self._end_task(running)
            self.result.seconds[task] += time.perf_counter() - start
            self._save(running, (task + 1, 0) if last else (task, epoch + 1))
            if last:
                break
        self._told.tell("on_task_end", task, self.result.matrix[task].copy())

    def _begin_task(self, task: int, saved: RunCheckpoint | None) -> Running:
        plan, dataset = self._plan, self.scenario.train_set(task)
        run = plan.begin(task, self._first + task, dataset, is_new=saved is None)
        self._check_made(run.made)
        if saved is not None:
            # What has begun is as new, and the interrupted task was not.
            saved.restore(self.net, self.fabric.device, run, plan.scaler, self.fabric.global_rank)
        plan.protect(run)
        return run

    def _check_made(self, made: dict[str, Any]) -> None:
        """Refuse a run that was trained with another optimizer; the network is as it came then."""
        self._made = self._made or made
        if self._resumed is not None:
            (saved, before), self._resumed = self._resumed, None
            try:
                saved.check_made(made)
            except CheckpointError:
                put_back(self.net, before)
                raise

    def _train_epoch(self, run: Running, epoch: int) -> None:
        loss, accuracy = train_epoch(self._plan, run, epoch, self._told)
        if not math.isfinite(loss):
            raise RuntimeError(
                f"Trainer: the loss is {loss} in task {run.task}, epoch {epoch + 1};"
                " try a smaller learning rate"
                f"{self.method.explain_divergence(self.net, run.optimizer)}"
            )
        record_epoch(self._plan, run, epoch, loss, accuracy, self.result)
        outlook = self.method.outlook(self.net, run.index)
        self._told.tell("on_epoch_end", run.task, epoch, loss, accuracy, outlook)

    def _end_task(self, run: Running) -> None:
        if run.best is not None:
            run.best.restore()
        # Importances by batches, not by samples, depend on which samples a batch has.
        whole = getattr(self.method, "reduction", "sample") == "batch"
        data = self.samples.task_data(run.task, run.dataset, whole=whole)
        self.method.end_task(self.net, run.state, data)
        if run.guard is not None:
            run.guard.remove()
        check_same(self.fabric, self.net, run.task)
        self.result.matrix[run.task] = self._tests.row(run.task, self.result.inference)
        self.result.measures.append(self.method.measure(self.net, run.index))

    def evaluate(self, task: int) -> float:
        """Score on a task's test data, at most 1, with its hard mask.

        Where the setting hides the task at test, it is inferred, if the network has an inference
        and a finished task; else the network is as the latest task sees it: a growing head chooses
        among all classes so far. Before ``fit`` the scenario's task 0 is the network's
        ``first_task``, or 0. Processes that share the run call it together.
        """
        with self.samples.loader:
            return self._tests.of(task)

    def _save(self, run: Running, position: tuple[int, int]) -> None:
        if (path := self.checkpoint_path) is None:
            return
        chance = everyones(self.fabric.world_size, rng_state(self.fabric.device))
        save_run(
            path, self.config, (*position, self._first), self.net, self.result,
            chance, run, self._plan.scaler,
        )  # fmt: skip

    @property
    def _plan(self) -> Plan:
        return Plan(
            self.net, self.method, self.problem, self.samples, self.optimizer_fn,
            self.scheduler_fn, self.schedule_by, self.validation, self.epochs, self.accumulate,
            is_wrapped=self._is_wrapped, is_saved=self.directory is not None,
        )  # fmt: skip

    @functools.cached_property
    def _given(self) -> dict[str, Any]:
        return describe(self._plan, self.scenario, self._tests.evaluate)

    @property
    def config(self) -> dict[str, Any]:
        """All that the result depends on, as a JSON object.

        ``optimizer`` and ``scheduler`` are in it once a task has begun, which makes them.
        """
        return {**self._given, **self._made}
