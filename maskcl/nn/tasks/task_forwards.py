"""What a network gives for one batch under several tasks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from maskcl.nn.tasks.active import ActiveTask
from maskcl.nn.tasks.sequential import are_watched, modules_of
from maskcl.nn.tasks.state import TaskAware, TaskState
from maskcl.sharded_modules import class_name


class TaskForwards(nn.Module):
    """Base of TaskNetwork: the forward under several finished tasks."""

    finished: Tensor
    model: nn.Module
    _state: TaskState

    def task(self, index: int) -> AbstractContextManager[Any]:
        """Make a task active."""
        raise NotImplementedError

    @torch.no_grad()
    def forward_tasks(
        self, *args: Any, tasks: Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """The model's outputs for one batch under the hard masks of several finished tasks.

        No task has to be active, and no gradient is recorded. Modules of a ``nn.Sequential`` in
        front of the first that knows of tasks are called once; for any other model this is a loop
        over ``net(x)``. Of a HATNetwork's ``nn.Sequential`` of linear layers the first product is
        computed once, and behind it closed units are left out. Its sums go in another order than
        those of ``net(x)``, which are the same up to rounding; which tasks are asked for, and which
        are finished later, changes no bit of them. Kept for it are the rows and columns that each
        task uses of all weights but the first layer's, until one of these is written; weights that
        a task uses whole are not copied, and what is written through ``.data`` is not seen.

        Args:
            *args: the forward's.
            tasks: finished ones, in any order; None for all that are.
            **kwargs: the forward's.

        Returns:
            One output a task.

        Raises:
            ValueError: no such task.
            RuntimeError: a task is not finished, or the network is in training mode.
        """
        return self._outputs_of(self._asked_for(tasks), args, kwargs)

    def _outputs_of(
        self, tasks: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        front, rest = self._split(tasks) if len(args) == 1 and not kwargs else ([], [])
        if not front:
            return self._one_by_one(tasks, args, kwargs)
        outputs = []
        x = args[0]
        for module in front:
            x = module(x)
        for task in tasks:
            with self.task(task):
                self._prepared()
                y = x
                for module in rest:
                    y = module(y)
                outputs.append(y)
        return outputs

    def _one_by_one(
        self, tasks: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        outputs = []
        for task in tasks:
            with self.task(task):
                outputs.append(self(*args, **kwargs))
        return outputs

    def _split(self, tasks: Sequence[int]) -> tuple[list[nn.Module], list[nn.Module]]:
        """Modules that need to be called once, and those behind; ([], ..) where all have to be."""
        modules = modules_of(self.model)
        if not tasks or _has_any_global_hook() or are_watched([self, self.model]):
            return [], modules
        # At least one is left for each task, so that no two outputs are one tensor.
        for count, module in enumerate(modules[:-1]):
            if any(isinstance(inner, TaskAware) for inner in module.modules()):
                return modules[:count], modules[count:]
        return modules[:-1], modules[-1:]

    def _prepared(self) -> ActiveTask:
        raise NotImplementedError

    def _asked_for(self, tasks: Iterable[int] | None) -> list[int]:
        name = f"{class_name(self)}.forward_tasks"
        if self.training:
            raise RuntimeError(f"{name}: the network is in training mode, wanted net.eval()")
        finished = self.finished
        done: list[int] = self._state.kept(
            "finished tasks", lambda: finished.nonzero().flatten().tolist(), (finished,)
        )
        if tasks is None:
            return list(done)
        if not isinstance(tasks, Iterable):
            raise ValueError(f"{name}: tasks is {tasks!r}, wanted a list of finished tasks or None")
        tasks, known = list(tasks), set(done)
        for task in tasks:
            if not isinstance(task, int) or not 0 <= task < len(finished):
                raise ValueError(
                    f"{name}: tasks has {task!r}, wanted ints from 0 to {len(finished) - 1}"
                )
            if task not in known:
                raise RuntimeError(
                    f"{name}: task {task} is not finished, wanted finished tasks alone; in `with"
                    f" net.task({task}):` the network runs it as it is now"
                )
        return tasks
