"""Avalanche (Lomonaco et al. 2021, arXiv 2104.00405): a model and a plugin for its strategies.

``Naive(model=MaskedModel(net), plugins=[MaskPlugin(maskcl.HAT())], ...)`` trains a network of
``to_hat``, ``to_piggyback`` or ``to_importance`` on a benchmark; docs/integrations/avalanche.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from maskcl.integrations.masked_model import NO_CLASS, MaskedModel
from maskcl.integrations.task_training import Regrouped, TaskTraining
from maskcl.methods import Method, TaskData

# After masked_model, which says what to install where there is no Avalanche.
from avalanche.benchmarks.scenarios import OnlineCLExperience  # isort: skip
from avalanche.training.plugins import SupervisedPlugin  # isort: skip

__all__ = ["NO_CLASS", "MaskPlugin", "MaskedModel"]


class MaskPlugin(SupervisedPlugin[Any]):
    """A method of maskcl in the loop of a strategy whose model is a `MaskedModel`.

    The strategy's optimizer is on one task's parameters while it trains, with fresh moments, and
    gets all back at the experience's end.

    Args:
        method: for example ``maskcl.HAT()``; any optimizer goes with it.
        seed: of embeddings and scores.
    """

    def __init__(self, method: Method, *, seed: int = 0) -> None:
        super().__init__()
        self.method, self.seed = method, seed
        self._model: MaskedModel | None = None
        self._regrouped: Regrouped | None = None

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Drop what an interrupted experience left."""
        self._release()

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Begin the experience's task.

        Raises:
            RuntimeError: the task is finished, or earlier ones are no longer what they were.
            TypeError, ValueError: model or benchmark cannot say which task this is, or there are
                two plugins of this kind.
        """
        model = getattr(strategy.model, "module", strategy.model)
        if not isinstance(model, MaskedModel):
            raise TypeError(
                f"MaskPlugin: the strategy's model is a {type(model).__name__}, wanted a"
                " MaskedModel of a network of tasks"
            )
        if isinstance(strategy.experience, OnlineCLExperience):
            raise ValueError(
                "MaskPlugin: an online stream cuts a task into experiences that do not say how many"
                " steps the task has, wanted a stream with one experience a task"
            )
        plugins = sum(isinstance(plugin, MaskPlugin) for plugin in strategy.plugins)
        if plugins > 1:
            raise ValueError(
                f"MaskPlugin: the strategy has {plugins} of them, which would each add their term"
                " to the loss: wanted one"
            )
        self._release()
        task = model.task_of(strategy.experience)
        model.begin(TaskTraining(self.method, model.net, task, self.seed))
        self._model = model
        self._take(strategy, self._run)
        epochs, steps = strategy.train_epochs, len(strategy.dataloader)
        self.method.check_plan(model.net, self._run.state, strategy.optimizer, epochs * steps)

    def before_training_iteration(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Set the masks' scale; protect the strategy's optimizer, should it be another by now."""
        run, clock = self._run, strategy.clock
        if not run.holds([strategy.optimizer]):
            self._take(strategy, run)
        step, steps = clock.train_epoch_iterations, len(strategy.dataloader)
        run.before_step(clock.train_exp_epochs, strategy.train_epochs, step, steps)

    def after_forward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse labels that the task's head has no output for."""
        if strategy.clock.train_exp_iterations > 0:
            return
        outputs = strategy.mb_output.shape[1]
        largest = max(strategy.experience.classes_in_this_experience)
        if largest >= outputs:
            raise ValueError(
                f"MaskPlugin: a sample of task {self._run.task} has class {largest}, and the"
                f" outputs are {outputs}: wanted classes counted from 0 in each task"
                " (class_ids_from_zero_in_each_exp=True), or a head with outputs for all"
            )

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the method's term to the loss."""
        strategy.loss = strategy.loss + self._run.term
        if not strategy.loss.requires_grad:  # of samples of finished tasks alone
            strategy.loss.requires_grad_()

    def after_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """The method's part of the gradients; those of protected weights are 0 then."""
        self._run.after_backward()

    def after_update(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """After the optimizer's step."""
        self._run.after_step()

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Finish the task; its outputs keep their bits from here on."""
        run, dataset = self._run, strategy.experience.dataset.eval()
        loader = DataLoader(
            dataset, batch_size=strategy.train_mb_size, collate_fn=dataset.collate_fn
        )

        def batches() -> Iterator[Any]:
            for x, y, *_ in loader:
                yield x.to(strategy.device), y.to(strategy.device)

        run.end(TaskData(batches))
        self._release()

    @property
    def _run(self) -> TaskTraining:
        assert self._model is not None and self._model.run is not None
        return self._model.run

    def _take(self, strategy: Any, run: TaskTraining) -> None:
        """Put the strategy's optimizer on the task's parameters and protect it."""
        if self._regrouped is not None:
            self._regrouped.undo()
        groups = self.method.parameter_groups(run.net, run.task)
        self._regrouped = Regrouped("MaskPlugin", strategy.optimizer, groups)
        run.protect([strategy.optimizer])

    def _release(self) -> None:
        if self._model is not None and self._model.run is not None:
            self._model.run.release()
            self._model.run = None
        if self._regrouped is not None:
            self._regrouped.undo()
            self._regrouped = None
