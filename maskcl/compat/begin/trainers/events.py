"""The event functions and what they do where nobody overrides them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.steps import States, Stats, Steps
from maskcl.nn.tasks.network import TaskNetwork


class Events(Steps):
    """The event functions of a trainer; each may be overridden in a subclass.

    Every function below that gets a model gets the one in training, in the task in training: what
    it computes is already under that task's masks, and a step of its optimizer cannot move what
    earlier tasks need.
    """

    # Epochs between lines of the log.
    log_every = 10

    def initTrainingStates(self, scenario: Any, model: nn.Module, optimizer: Optimizer) -> States:
        """Once, in the beginning: what is to be kept between events.

        Args:
            scenario: the loader.
            model: as it will train.
            optimizer: of it, for looking at: each task has a new one.

        Returns:
            A dict, of which every model that is trained gets a copy.
        """
        return {}

    @either_name
    def prepareLoader(
        self, curr_dataset: Any, curr_training_states: States
    ) -> tuple[Any, Any, Any]:
        """For each task and model: batches for training, validation and test.

        Each is iterable more than once and has a length.
        """
        raise NotImplementedError

    @either_name
    def processBeforeTraining(
        self,
        task_id: int,
        curr_dataset: Any,
        curr_model: Any,
        curr_optimizer: Optimizer,
        curr_training_states: States,
    ) -> None:
        """Before a task: a scheduler, no best weights yet, and the task's classes may answer.

        ``curr_optimizer`` is new in every task.
        """
        self._reset_optimizer(curr_optimizer)
        make = self.scheduler_fn
        curr_training_states["scheduler"] = None if make is None else make(curr_optimizer)
        curr_training_states.pop("best_weights", None)
        worst = {"best_val_loss": 1e10, "best_val_score": -1.0, "best_val_acc": -1.0}
        curr_training_states.update(worst)
        every = torch.arange(self._num_classes) if self.binary else None
        seen = self._seen_labels(curr_dataset) if every is None else every
        curr_model.observe_labels(seen)

    @either_name
    def beforeInference(
        self, model: Any, optimizer: Optimizer, curr_batch: Any, curr_training_states: States
    ) -> Any:
        """Before a step's inference; what it returns is ``results["_before_inference"]`` after."""

    @either_name
    def inference(self, model: Any, curr_batch: Any, curr_training_states: States | None) -> Stats:
        """A batch's predictions and loss; in evaluation the states are None (HAT: see there).

        Returns:
            ``preds`` [n, C] and ``loss``, 0-d, at least.
        """
        preds, answers = self._run(model, curr_batch), self._answers(curr_batch)
        return {"preds": preds, "loss": self._loss(preds, answers)}

    @either_name
    def afterInference(
        self,
        results: Stats,
        model: Any,
        optimizer: Optimizer,
        curr_batch: Any,
        curr_training_states: States,
    ) -> Stats:
        """Backward and a step, with what the method adds to the loss and does to gradients."""
        self._learn(results["loss"], model, optimizer)
        answers = self._answers(curr_batch)
        found = self.eval_fn(self.predictionFormat(results), answers)
        return {"_num_items": len(answers), "loss": results["loss"].item(), "acc": found}

    @either_name
    def processTrainIteration(
        self, model: Any, optimizer: Optimizer, curr_batch: Any, curr_training_states: States
    ) -> Stats | None:
        """A training step: beforeInference, inference, afterInference.

        Returns:
            Numbers by name, averaged over the epoch; where ``_num_items`` is there, weighted by it.
        """
        optimizer.zero_grad()
        before = self.beforeInference(model, optimizer, curr_batch, curr_training_states)
        results = self.inference(model, curr_batch, curr_training_states)
        results["_before_inference"] = before
        return self.afterInference(results, model, optimizer, curr_batch, curr_training_states)

    @either_name
    @torch.no_grad()
    def processEvalIteration(self, model: Any, curr_batch: Any) -> tuple[Tensor, Stats]:
        """A batch's predictions as the evaluator takes them, and numbers by name.

        Where samples say their task, each is predicted under its own task's masks; one of a task
        that was not trained yet, under the current one's.
        """
        masks = self._task_masks(curr_batch)
        if masks is None or not isinstance(getattr(model, "core", None), TaskNetwork):
            results = self.inference(model, curr_batch, self._eval_states(self.curr_task))
        else:
            results = self._by_task(model, curr_batch, self._tasks(masks))
        return self.predictionFormat(results), {"loss": float(results["loss"])}

    def predictionFormat(self, results: Stats) -> Tensor:
        """Predictions as the evaluator takes them: classes; with ``binary`` the scores."""
        return results["preds"] if self.binary else results["preds"].argmax(-1)

    def processTrainingLogs(
        self,
        task_id: int,
        epoch_cnt: int,
        val_metric_result: float,
        train_stats: Stats,
        val_stats: Stats,
    ) -> None:
        """After an epoch, where ``verbose``: a line."""
        if epoch_cnt % self.log_every:
            return
        print(f"task_id: {task_id} Epoch #{epoch_cnt}:", end=" ")
        print("train_acc:", round(train_stats["acc"], 4), end=" ")
        print("val_acc:", round(val_metric_result, 4), end=" ")
        print("train_loss:", round(train_stats["loss"], 4), end=" ")
        print("val_loss:", round(val_stats["loss"], 4))

    def processAfterEachIteration(
        self,
        curr_model: Any,
        curr_optimizer: Optimizer,
        curr_training_states: States,
        curr_iter_results: Stats,
    ) -> bool:
        """After an epoch: keep the best weights, step the scheduler.

        Args:
            curr_model: in training.
            curr_optimizer: of it.
            curr_training_states: of it.
            curr_iter_results: ``val_metric``, ``train_stats`` and ``val_stats``.

        Returns:
            False to end the task's training: the rate is at the scheduler's smallest.
        """
        loss = curr_iter_results["val_stats"]["loss"]
        return self._keep_best(
            curr_model, curr_optimizer, curr_training_states, "best_val_loss", loss
        )

    def processAfterTraining(
        self,
        task_id: int,
        curr_dataset: Any,
        curr_model: Any,
        curr_optimizer: Optimizer,
        curr_training_states: States,
    ) -> None:
        """After a task: the best weights back, and what the method records of the task."""
        if "best_weights" in curr_training_states:
            curr_model.load_state_dict(curr_training_states["best_weights"])
        self._end_method(curr_model)
