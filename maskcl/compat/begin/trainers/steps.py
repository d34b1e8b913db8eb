"""What the default events are made of: a step, the best weights, each sample under its own task."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from maskcl.compat.begin.trainers.running import Run, active

States = dict[str, Any]
Stats = dict[str, Any]


class Steps:
    """Base of `Events`; what it does not define, the trainer and the problem do."""

    device: torch.device
    loss_fn: Callable[..., Tensor]
    eval_fn: Callable[[Tensor, Tensor], float]
    scheduler_fn: Callable[[Optimizer], Any] | None
    binary: bool
    _scenario: Any

    @property
    def incr_type(self) -> str:
        """The scenario's setting."""
        return self._scenario.incr_type

    @property
    def curr_task(self) -> int:
        """Index of the task in training."""
        return self._scenario._curr_task

    def _learn(self, loss: Tensor, model: Any, optimizer: Optimizer) -> None:
        """Backward of the loss and the method's term, and a step."""
        run = self._run_of(model)
        term = run.method.loss_term(run.net, run.state)
        (loss + term).backward()
        run.method.after_backward(run.net, run.state)
        optimizer.step()

    def _keep_best(
        self, model: Any, optimizer: Optimizer, states: States, plateau: float, value: float
    ) -> bool:
        """Keep weights of the largest ``value``; step the scheduler, a plateau's by ``plateau``."""
        # Where a value is NaN there is no best, and the latest weights stay.
        if "best_weights" not in states or not value <= states["best_value"]:
            states["best_value"] = value
            weights = model.state_dict()
            weights.update({k: v.clone() for k, v in weights.items() if isinstance(v, Tensor)})
            states["best_weights"] = weights
        scheduler = states["scheduler"]
        if scheduler is None:
            return True
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
            return True
        scheduler.step(plateau)
        return abs(optimizer.param_groups[0]["lr"] - scheduler.min_lrs[0]) >= 1e-9

    def _loss(self, preds: Tensor, answers: Tensor, evaluating: bool) -> Tensor:
        """The loss; NaN where all labels are hidden, as a test set's are."""
        if evaluating and bool((answers < 0).all()):
            return preds.new_full((), math.nan)
        return self.loss_fn(preds, answers)

    def _by_task(self, model: Any, batch: Any, tasks: Tensor) -> Stats:
        """Inference under each row's own task."""
        results: Stats = {}
        for task in tasks.unique().tolist():
            with active(model, task):
                found = self.inference(model, batch, None)
            rows = (tasks == task).to(found["preds"].device)
            if results:
                rows = rows.view(-1, *[1] * (found["preds"].dim() - 1))
                found["preds"] = torch.where(rows, found["preds"], results["preds"])
                found["loss"] = self._loss(found["preds"], self._answers(batch), True)
            results = found
        return results

    def _tasks(self, masks: Tensor) -> Tensor:
        """The task of each row of class masks, at most the current one; int64 [n]."""
        first = masks.int().argmax(-1)
        return self._task_of_class.to(first.device)[first].clamp(max=self.curr_task)

    def _reduceTrainingStats(self, curr_stats: dict[str, list[Any]]) -> Stats:
        """Means over an epoch's steps, weighted by ``_num_items`` where it is there."""
        weights = curr_stats.pop("_num_items", None)
        return {name: float(np.average(v, weights=weights)) for name, v in curr_stats.items()}

    def _reduceEvalStats(self, curr_stats: dict[str, list[Any]]) -> Stats:
        """As `_reduceTrainingStats`."""
        return self._reduceTrainingStats(curr_stats)

    def _reset_optimizer(self, target_optimizer: Optimizer) -> None:
        """Forget moments; the rates are as ``optimizer_fn`` made them, as it is new in a task."""
        target_optimizer.state.clear()

    # What follows is the trainer's and the problem's.
    _task_of_class: Tensor
    _num_classes: int

    def inference(self, model: Any, curr_batch: Any, curr_training_states: States | None) -> Stats:
        """See `Events`."""
        raise NotImplementedError

    def _run_of(self, model: Any) -> Run:
        raise NotImplementedError

    def _end_method(self, model: Any) -> None:
        raise NotImplementedError

    def _run(self, model: Any, batch: Any) -> Tensor:
        """Outputs for a batch's samples."""
        raise NotImplementedError

    def _answers(self, batch: Any) -> Tensor:
        """Labels of a batch's samples, -1 where they are hidden."""
        raise NotImplementedError

    def _task_masks(self, batch: Any) -> Tensor | None:
        """Classes of each sample's task, bool [n, C]; None in other settings."""
        raise NotImplementedError

    def _seen_labels(self, dataset: Any) -> Tensor:
        """Labels of a task's training and validation samples."""
        raise NotImplementedError
