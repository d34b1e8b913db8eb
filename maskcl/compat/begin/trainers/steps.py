"""What the default events are made of: a step, the best weights, each sample under its own task."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.running import Run, active
from maskcl.compat.begin.trainers.start import Start, at_smallest_rate
from maskcl.methods.loss_scaling import NOT_SCALED

States = dict[str, Any]
Stats = dict[str, Any]


class Steps(Start):
    """Base of `Events`; what it does not define, the trainer and the problem do."""

    device: torch.device
    loss_fn: Callable[..., Tensor]
    eval_fn: Callable[[Tensor, Tensor], float]
    scheduler_fn: Callable[[Optimizer], Any] | None
    binary: bool
    _scenario: Any

    @staticmethod
    def _dataloader_seed_worker(worker_id: int) -> None:
        """For a DataLoader's ``worker_init_fn``: numpy and random draw by the worker's seed."""
        seed = torch.initial_seed() % 2**32
        np.random.seed(seed)  # noqa: NPY002 - what users' datasets may draw from
        random.seed(seed)

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
        run.method.after_backward(run.net, run.state, scaler=NOT_SCALED)
        optimizer.step()

    def _keep_best(
        self, model: Any, optimizer: Optimizer, states: States, best: str, value: float
    ) -> bool:
        """Keep the weights of the best ``value``; step the scheduler, a plateau's by it.

        Args:
            model: of the run.
            optimizer: of the run.
            states: of the run.
            best: where the states keep it: "best_val_loss", or "best_val_score", the larger the
                better.
            value: of this epoch.

        Returns:
            Whether to go on.
        """
        # Where a value is NaN there is no best, and the latest weights stay.
        if best == "best_val_loss":
            better = not value >= states.get(best, math.inf)
        else:
            better = not value <= states.get(best, -math.inf)
        if "best_weights" not in states or better:
            states[best] = value
            weights = model.state_dict()
            weights.update({k: v.clone() for k, v in weights.items() if isinstance(v, Tensor)})
            states["best_weights"] = weights
        scheduler = states["scheduler"]
        if scheduler is None:
            return True
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
            return True
        scheduler.step(value)
        return not at_smallest_rate(optimizer, scheduler)

    def _loss(self, preds: Tensor, answers: Tensor) -> Tensor:
        """The loss; in evaluation NaN where all labels are hidden, as a test set's are."""
        if not torch.is_grad_enabled() and bool((answers < 0).all()):
            return preds.new_full((), math.nan)
        return self.loss_fn(preds, answers)

    def _by_task(self, model: Any, batch: Any, tasks: Tensor) -> Stats:
        """Inference under each row's own task."""
        results: Stats = {}
        for task in tasks.unique().tolist():
            with active(model, task):
                found = self.inference(model, batch, self._eval_states(task))
            rows = (tasks == task).to(found["preds"].device)
            if results:
                rows = rows.view(-1, *[1] * (found["preds"].dim() - 1))
                found["preds"] = torch.where(rows, found["preds"], results["preds"])
                found["loss"] = self._loss(found["preds"], self._answers(batch))
            results = found
        return results

    def _tasks(self, masks: Tensor) -> Tensor:
        """The task of each row of class masks, at most the current one; int64 [n]."""
        first = masks.int().argmax(-1)
        found = self._task_of_class.to(first.device)[first]
        return torch.where(found < 0, self.curr_task, found.clamp(max=self.curr_task))

    def _eval_states(self, task: int) -> States | None:
        """What `inference` gets for states in the evaluation of a task's samples."""
        return None

    def _learn_classes(self, batch: Any) -> None:
        """Which classes are the current task's, where no scenario says it: its samples' masks."""
        masks = self._task_masks(batch)
        if masks is not None and bool((self._task_of_class[masks[0].cpu()] < 0).any()):
            self._task_of_class[masks[0].cpu()] = self.curr_task

    @either_name
    def _trainWrapper(
        self,
        model: Any,
        optimizer: Optimizer,
        curr_batch: Any,
        curr_training_states: States,
        curr_stats: dict[str, list[Any]],
    ) -> None:
        """A training step; what it returns is put into ``curr_stats``, by name."""
        found = self.processTrainIteration(model, optimizer, curr_batch, curr_training_states)
        _collect(curr_stats, found)

    @either_name
    def _evalWrapper(self, model: Any, curr_batch: Any, curr_stats: dict[str, list[Any]]) -> Tensor:
        """A batch's predictions; the numbers beside them are put into ``curr_stats``, by name."""
        predictions, found = self.processEvalIteration(model, curr_batch)
        _collect(curr_stats, found)
        return predictions

    def _targets(self, batch: Any, results: Stats) -> Tensor:
        """Labels of the rows of an inference's ``preds``."""
        return self._answers(batch)

    def _reduceTrainingStats(self, curr_stats: dict[str, list[Any]]) -> Stats:
        """Means over an epoch's steps, weighted by ``_num_items`` where it is there."""
        weights = curr_stats.pop("_num_items", None)
        return {name: float(np.average(v, weights=weights)) for name, v in curr_stats.items()}

    def _reduceEvalStats(self, curr_stats: dict[str, list[Any]]) -> Stats:
        """As `_reduceTrainingStats`."""
        return self._reduceTrainingStats(curr_stats)

    # What follows is the trainer's and the problem's.
    _task_of_class: Tensor
    _num_classes: int

    def inference(self, model: Any, curr_batch: Any, curr_training_states: States | None) -> Stats:
        """See `Events`."""
        raise NotImplementedError

    def processTrainIteration(
        self, model: Any, optimizer: Optimizer, curr_batch: Any, curr_training_states: States
    ) -> Stats | None:
        """See `Events`."""
        raise NotImplementedError

    def processEvalIteration(self, model: Any, curr_batch: Any) -> tuple[Tensor, Stats]:
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


def _collect(stats: dict[str, list[Any]], found: Stats | None) -> None:
    for name, value in (found or {}).items():
        stats.setdefault(name, []).append(value)
