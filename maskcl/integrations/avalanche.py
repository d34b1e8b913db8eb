"""Avalanche (Lomonaco et al. 2021, arXiv 2104.00405): a model and a plugin for its strategies.

``Naive(model=MaskedModel(net), plugins=[MaskPlugin(maskcl.HAT())], ...)`` trains a network of
``to_hat``, ``to_piggyback`` or ``to_importance`` on a benchmark; docs/integrations/avalanche.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from maskcl.integrations.task_training import Regrouped, TaskTraining
from maskcl.methods import Method, TaskData
from maskcl.nn import ImportanceNetwork, TaskNetwork

try:
    from avalanche.benchmarks.scenarios import OnlineCLExperience
    from avalanche.models import DynamicModule, MultiTaskModule
    from avalanche.training.plugins import SupervisedPlugin
except ImportError as error:
    raise ImportError(
        f"maskcl.integrations.avalanche needs avalanche-lib (found no {error.name}):"
        " pip install avalanche-lib"
    ) from error

__all__ = ["MaskPlugin", "MaskedModel"]

NO_CLASS = -1000.0
"""Output of a class that a sample's task does not have, as MultiHeadClassifier's."""


class MaskedModel(MultiTaskModule):
    """A network of tasks as strategies call it; the task is chosen by each sample's task label.

    In a batch with several labels each sample is answered under its own task's mask; rows are as
    wide as the widest, with `NO_CLASS` beyond a task's own classes.

    Args:
        net: a network of tasks. Its task k is that of label k.
        tasks: "labels", or "experiences" where a benchmark's labels tell nothing (class- and
            domain-incremental): each experience is a task, and whatever is tested is answered as
            the latest task sees it. MAS and EWC alone can do without labels.

    Raises:
        TypeError: the network is of another kind.
        ValueError: tasks is not as above, or parts of the network grow by Avalanche's adaptation.
    """

    def __init__(self, net: TaskNetwork, *, tasks: str = "labels") -> None:
        super().__init__()
        if not isinstance(net, TaskNetwork):
            raise TypeError(
                f"MaskedModel: net is a {type(net).__name__}, wanted a network of tasks"
                " (maskcl.nn.to_hat, to_piggyback or to_importance make one)"
            )
        if tasks not in ("labels", "experiences"):
            raise ValueError(f"MaskedModel: tasks is {tasks!r}, wanted one of labels, experiences")
        if tasks == "experiences" and not isinstance(net, ImportanceNetwork):
            raise ValueError(
                f"MaskedModel: a {type(net).__name__} chooses the mask by the task that a sample"
                " belongs to, which an experience does not tell at test: wanted a benchmark with"
                " task labels, or maskcl.Trainer with maskcl.TaskInference"
            )
        for name, module in net.named_modules():
            if isinstance(module, DynamicModule):
                raise ValueError(
                    f"MaskedModel: {name} is a {type(module).__name__}, which Avalanche replaces"
                    " between tasks: give the model an nn.Linear in its place before conversion,"
                    " and classes=[...] for the heads"
                )
        self.net = net
        self.tasks = tasks
        self.run: TaskTraining | None = None
        self._latest = 0

    def adaptation(self, experience: Any) -> None:
        """Nothing: heads were made at conversion."""

    def begin(self, run: TaskTraining) -> None:
        """Take over a task that has begun: in training mode its masks are those that learn."""
        self.run, self._latest = run, run.task
        self.known_train_tasks_labels = {*self.known_train_tasks_labels, run.task}

    def task_of(self, experience: Any) -> int:
        """The network's task that an experience trains.

        Raises:
            ValueError: its samples have no task label, or several.
        """
        if self.tasks == "experiences":
            return int(experience.current_experience)
        found = sorted(set(getattr(experience, "task_labels", [])))
        if len(found) != 1:
            which = ", ".join(map(str, found)) or "none"
            raise ValueError(
                f"MaskedModel: experience {experience.current_experience} has the task labels"
                f" {which}, wanted one: a benchmark with task labels (return_task_id=True,"
                " task_incremental_benchmark), one for each experience"
            )
        return int(found[0])

    def forward(self, x: Tensor, task_labels: Tensor | int | None = None) -> Any:
        """Outputs [N, C] for labels [N] or one label; by label, of all tasks known, for None."""
        if self.tasks == "experiences":
            return self.forward_single_task(x, self._latest)
        if task_labels is None:
            return self.forward_all_tasks(x)
        if isinstance(task_labels, int):
            return self.forward_single_task(x, task_labels)
        found = torch.unique(task_labels).tolist()
        if len(found) == 1:
            return self.forward_single_task(x, found[0])
        parts = {k: self.forward_single_task(x[task_labels == k], k) for k in found}
        first = next(iter(parts.values()))
        widest = max(part.shape[1] for part in parts.values())
        out = first.new_full((len(x), widest), NO_CLASS)
        for task, part in parts.items():
            out[task_labels == task, : part.shape[1]] = part
        return out

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Outputs [N, classes of the task].

        Raises:
            RuntimeError: in training, no task has begun.
            ValueError: there is no such task.
        """
        if self.training and torch.is_grad_enabled():
            if self.run is None:
                raise RuntimeError(
                    "MaskedModel: no task has begun, and nothing would be protected: wanted a"
                    " MaskPlugin among the strategy's plugins"
                )
            if task_label == self.run.task:
                return self.run.forward(x)
        with self.net.task(task_label):
            return self.net(x)


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
            TypeError, ValueError: model or benchmark cannot say which task this is.
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
        outputs, largest = strategy.mb_output.shape[1], int(strategy.mb_y.max())
        if largest >= outputs:
            raise ValueError(
                f"MaskPlugin: a sample of task {self._run.task} has class {largest}, and the"
                f" outputs are {outputs}: wanted classes counted from 0 in each task"
                " (class_ids_from_zero_in_each_exp=True), or a head with outputs for all"
            )

    def before_backward(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Add the method's term to the loss."""
        strategy.loss = strategy.loss + self._run.term

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
