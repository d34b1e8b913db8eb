"""A network of tasks as Avalanche's strategies call it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.integrations.task_training import TaskTraining
from maskcl.nn import ImportanceNetwork, TaskNetwork

try:
    from avalanche.models import DynamicModule, MultiTaskModule
except ImportError as error:
    raise ImportError(
        f"maskcl.integrations.avalanche needs avalanche-lib (found no {error.name}):"
        " pip install avalanche-lib"
    ) from error

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

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which other plugins make: the task in training stays with this model."""
        return {**self.__dict__, "run": None}

    def adaptation(self, experience: Any) -> None:
        """Drop a task whose training was interrupted, so that no other strategy goes on with it."""
        if self.training and self.run is not None:
            self.run.release()
            self.run = None

    def begin(self, run: TaskTraining) -> None:
        """Take over a task that has begun: in training mode its masks are those that learn."""
        self.run, self._latest = run, run.task
        self.known_train_tasks_labels: set[int] = {*self.known_train_tasks_labels, run.task}

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
