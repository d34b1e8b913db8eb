"""The loop that calls the events: tasks, epochs, steps, and the scores after each task."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from maskcl.compat.begin.methods import FineTuning
from maskcl.compat.begin.trainers import results
from maskcl.compat.begin.trainers.pretraining import Pretraining
from maskcl.compat.begin.trainers.running import Run, active
from maskcl.compat.begin.trainers.steps import States, Stats
from maskcl.methods import TaskData
from maskcl.ops import task_progress


class Loop(Pretraining):
    """What a trainer does between the events; `BaseTrainer` sets its attributes."""

    model: Any
    method: Any
    seed: int
    full_mode: bool
    verbose: bool
    result_path: Any
    optimizer_fn: Callable[[Any], Optimizer]
    save_file_name: str
    _runs: dict[int, Run]

    def run(self, epoch_per_task: int = 1) -> dict[str, Any]:
        """Train on all tasks.

        Args:
            epoch_per_task: at most, for each.

        Returns:
            ``exp_val`` and ``exp_test`` [T, T + 1]: row i after task i, column j on task j, the
            last one over all; ``exp_AP``, ``exp_AF``, ``exp_FWT`` (None but in the domain setting);
            ``init_val`` and ``init_test`` [T + 1] of the untrained model; with ``full_mode`` also
            ``base_*``, ``accum_*`` and ``exp_INT``. NaN is what was not measured.

        Raises:
            ValueError: epoch_per_task is not at least 1.
            RuntimeError: the scenario has been used.
        """
        if not isinstance(epoch_per_task, int) or epoch_per_task < 1:
            raise ValueError(f"run: epoch_per_task is {epoch_per_task!r}, wanted at least 1")
        if self.curr_task != 0:
            raise RuntimeError(f"run: the scenario is at task {self.curr_task}, wanted a new one")
        self.max_num_epochs = epoch_per_task
        exp = Run("exp", self.model, self.method)
        states = self.initTrainingStates(self._scenario, self.model, self._optimizer(exp, 0)) or {}
        found: dict[str, Any] = {}
        rows: dict[str, list[Tensor]] = defaultdict(list)
        final: dict[str, Any] = {}
        accumulated: States = {}
        while (dataset := self._scenario.get_current_dataset()) is not None:
            if self.curr_task == 0:
                self._pretrain(dataset, states)
                exp.states = copy.deepcopy(states)
                found = self._untrained(dataset, copy.deepcopy(states))
            if self.curr_task == 0 or self.full_mode:
                accumulated = copy.deepcopy(states)
            runs = [exp]
            if self.full_mode:
                runs += [self._plain("base", copy.deepcopy(states))]
                runs += [self._plain("accum", accumulated)]
            self._train_task(runs, dataset, epoch_per_task)
            final = self._measure(runs, rows, accumulated)
        found |= {name: torch.stack(values) for name, values in rows.items()}
        found |= results.summary(found, final)
        if self.verbose:
            results.show(found)
        if self.result_path is not None:
            results.save(self.result_path, self.save_file_name, found)
        return found

    def _train_task(self, runs: list[Run], dataset: Any, epochs: int) -> None:
        self._runs = {}  # of the task before
        for run in runs:
            joint = run.name == "accum"
            self._begin(run, self._scenario.get_accumulated_dataset() if joint else dataset)
        for epoch in range(epochs):
            for run in runs:
                if not run.stopped:
                    self._epoch(run, epoch)
        for run in runs:
            run.model.eval()
            self.processAfterTraining(
                self.curr_task, run.data, run.model, _given(run.optimizer), run.states
            )
            self._end_method(run.model)

    def _begin(self, run: Run, dataset: Any) -> None:
        """A task's optimizer, guard and loaders, then the event."""
        task = self.curr_task
        self._runs[id(run.model)] = run
        run.data, run.stopped, run.ended = dataset, False, False
        run.state = run.method.begin_task(run.net, task, seed=self.seed)
        if hasattr(run.model, "begin_task"):
            run.model.begin_task(task)
        run.optimizer = self._optimizer(run, task)
        run.guard = run.method.protect(run.optimizer, run.net, run.state)
        loaders = self.prepareLoader(dataset, run.states)
        run.loaders = dict(zip(("train", "val", "test"), loaders, strict=True))
        if self.incr_type == "task" and not hasattr(self._scenario, "task_of_class"):
            self._learn_classes(next(iter(run.loaders["train"])))
        steps = self.max_num_epochs * len(run.loaders["train"])
        run.method.check_plan(run.net, run.state, run.optimizer, steps)
        self.processBeforeTraining(task, dataset, run.model, run.optimizer, run.states)

    def _epoch(self, run: Run, epoch: int) -> None:
        """An epoch's steps, validation, and the events that see its results."""
        task, loader = self.curr_task, run.loaders["train"]
        batches, stats = len(loader), dict[str, list[Any]]()
        run.model.train()
        for i, batch in enumerate(loader):
            progress = task_progress(epoch, self.max_num_epochs, i, batches)
            run.method.before_step(run.net, run.state, progress)
            with active(run.model, task, run.state.scale):
                self._trainWrapper(run.model, _given(run.optimizer), batch, run.states, stats)
            run.method.after_step(run.net, run.state)
        train_stats = self._reduceTrainingStats(stats)
        run.model.eval()
        predictions, val_stats = self._predictions(run.model, run.loaders["val"])
        if run.name == "accum":
            metric = self._scenario.get_accum_eval_result(predictions, target_split="val")[-1]
        else:
            metric = self._scenario.get_eval_result(predictions, target_split="val")[task]
        value = float(metric)
        if run.name == "exp" and self.verbose:
            self.processTrainingLogs(task, epoch, value, train_stats, val_stats)
        seen = {"val_metric": value, "train_stats": train_stats, "val_stats": val_stats}
        go_on = self.processAfterEachIteration(run.model, _given(run.optimizer), run.states, seen)
        run.stopped = not go_on

    def _end_method(self, model: Any) -> None:
        """What the method records of a task, and the guard's end; once a task."""
        run = self._run_of(model)
        if run.ended or run.optimizer is None:
            return
        run.ended = True
        run.method.end_task(run.net, run.state, self._task_data(run))
        if run.guard is not None:
            run.guard.remove()

    def _task_data(self, run: Run) -> TaskData:
        """The task's training samples once more, in the same order and with the same negatives."""

        def batches() -> Iterator[Any]:
            yield from self.prepareLoader(run.data, run.states)[0]

        def forward(net: Any, batch: Any) -> tuple[Tensor, Tensor]:
            found = self.inference(run.model, batch, run.states)
            preds = found["preds"]
            outputs = preds.unsqueeze(-1) if preds.dim() == 1 else preds
            return outputs, self._targets(batch, found).flatten()

        return TaskData(batches, forward, self._segments())

    def _segments(self) -> Callable[[Any], Tensor] | None:
        """See `TaskData.segments`."""
        return None

    def _measure(
        self, runs: list[Run], rows: dict[str, list[Tensor]], states: States
    ) -> dict[str, Any]:
        """A row for each model and split; then the next task. After the last one: its metrics."""
        loaders = runs[-1].loaders
        if runs[-1].name != "accum":
            parts = self.prepareLoader(self._scenario.get_accumulated_dataset(), states)
            loaders = dict(zip(("train", "val", "test"), parts, strict=True))
        for split in ("val", "test"):
            for run in reversed(runs):
                run.model.eval()
                predictions, _ = self._predictions(run.model, loaders[split])
                if split == "val":
                    row = self._scenario.get_accum_eval_result(predictions, target_split="val")
                else:
                    row = self._scenario.get_eval_result(predictions, target_split="test")
                rows[f"{run.name}_{split}"].append(row)
        return self._scenario.next_task(predictions) or {}

    def _untrained(self, dataset: Any, states: dict[str, Any]) -> dict[str, Any]:
        """Scores of the model as it was given, every class allowed to answer."""
        run = self._plain("base", states)
        self._begin(run, dataset)
        run.model.eval()
        if getattr(run.model, "classifier", None) is not None:
            run.model.classifier.observed.fill_(True)
        found = {}
        for split in ("val", "test"):
            predictions, _ = self._predictions(run.model, run.loaders[split])
            row = self._scenario.get_eval_result(predictions, target_split=split)
            found[f"init_{split}"] = row
        if self.incr_type == "domain":
            self._scenario.initial_test_result = found["init_test"]
        return found

    def _plain(self, name: str, states: dict[str, Any]) -> Run:
        """A model to compare with: the one that was given, untrained, without a method."""
        model = copy.deepcopy(self._initial).to(self.device)
        return Run(name, model, FineTuning(), states)

    @torch.no_grad()
    def _predictions(self, model: Any, loader: Iterable[Any]) -> tuple[Tensor, Stats]:
        stats = dict[str, list[Any]]()
        predictions = [self._evalWrapper(model, batch, stats) for batch in loader]
        return torch.cat(predictions), self._reduceEvalStats(stats)

    def _optimizer(self, run: Run, task: int) -> Optimizer:
        return self._noted(self.optimizer_fn(run.method.parameter_groups(run.net, task)))

    def _run_of(self, model: Any) -> Run:
        return self._runs[id(model)]


def _given(optimizer: Optimizer | None) -> Optimizer:
    assert optimizer is not None
    return optimizer
