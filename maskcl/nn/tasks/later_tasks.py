"""Tasks that come after a network was made: more of them, more classes, states of fewer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.tasks.heads import GrowingHead, TaskHeads
from maskcl.nn.tasks.loading import Loading
from maskcl.nn.tasks.model_structure import ModelStructure
from maskcl.nn.tasks.network import TaskNetwork, numbers_where
from maskcl.nn.tasks.norms import TaskNorm
from maskcl.nn.tasks.own_parts import holders, shared_modules
from maskcl.nn.tasks.task_parameters import TaskParameter
from maskcl.sharded_modules import class_name
from maskcl.shards import is_sharded, placed


class LaterTasks(Loading, TaskNetwork):
    """A network that takes more tasks than it was made for; base of all three, arguments likewise.

    Whatever is added here, outputs of the tasks that were there before have the bits they had.
    """

    _structure: ModelStructure | None = None

    @torch.inference_mode(False)
    @torch.no_grad()
    def add_tasks(self, count: int, classes: Sequence[int] | None = None) -> None:
        """Make room for more tasks, after the last: heads, norms, masks and records.

        Their heads are drawn by torch's generator, as any ``nn.Linear``; their norms and copies of
        loose parameters start as those of the first tasks did. Optimizers are built after
        ``begin_task``, as ever.

        Args:
            count: how many.
            classes: outputs of each new task's head; of a growing head the number of classes seen
                by the end of each. None: as many as the last task's (of a growing head, as many
                more as the last task brought).

        Raises:
            RuntimeError: a task is in training, parameters are sharded, or finished tasks are not
                what they were.
            ValueError: an argument is not as above.
            ConversionError: the model is not the one that was converted. Nothing has changed where
                one of these is raised.
        """
        caller = f"{class_name(self)}.add_tasks"
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{caller}: count is {count!r}, wanted an integer of at least 1")
        heads = self._head_classes(caller, count, classes)
        self._check_between(caller)
        for _, module in list(shared_modules(self.model)):
            if isinstance(module, (TaskHeads, GrowingHead)):
                module.add_tasks(heads[module])
            elif isinstance(module, (TaskNorm, TaskParameter)):
                module.add_tasks(count)
        first, self.num_tasks = self.num_tasks, self.num_tasks + count
        self._add_records(first)
        self._follow_model()

    @torch.inference_mode(False)
    @torch.no_grad()
    def add_classes(self, task: int, count: int) -> None:
        """More outputs for a task that is not finished, after those that its head has.

        A finished task has learned its classes, and nothing can train more of its outputs: classes
        that come later are a task of their own, by ``add_tasks``. In a growing head the tasks after
        it see the classes too.

        Args:
            task: neither finished nor in training; in a growing head no task after it is finished.
            count: how many.

        Raises:
            RuntimeError: a task is finished or in training, or as in ``add_tasks``.
            ValueError: an argument is not as above, or tasks have no outputs of their own.
        """
        caller = f"{class_name(self)}.add_classes"
        self._check_task("add_classes", task)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{caller}: count is {count!r}, wanted an integer of at least 1")
        heads = self._heads()
        if not heads:
            raise ValueError(f"{caller}: all tasks share one output layer, wanted TaskHeads")
        grows = any(isinstance(head, GrowingHead) for head in heads)
        done = self.finished.tolist()
        later = [k for k in range(task, self.num_tasks if grows else task + 1) if done[k]]
        if later:
            raise RuntimeError(
                f"{caller}: task {later[0]} is finished, and no training would reach its new"
                f" outputs: net.add_tasks(1, classes=[...]) makes a task of the new classes"
            )
        self._check_between(caller)
        for head in heads:
            head.add_classes(task, count)
        self._follow_classes()
        self._follow_model()

    def complete_state(self, state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """A ``state_dict`` of a network of fewer tasks as one of this; any other as it is.

        What is of later tasks alone is this network's own, and they are not finished.

        Args:
            state: of a network like this one.
            prefix: of this network's names in it.

        Raises:
            RuntimeError: it is of more tasks.
        """
        new, count = dict(state), self.check_count(state, prefix)
        if count == self.num_tasks:
            return new
        for name, tensor in self._state_of(range(count, self.num_tasks)).items():
            new.setdefault(prefix + name, tensor)
        for name, (dim, size, blank) in self._records().items():
            if isinstance(found := new.get(prefix + name), Tensor):
                new[prefix + name] = _padded(found, dim, size, blank)
        for name, rows in self._class_rows().items():
            if isinstance(found := new.get(prefix + name), Tensor):
                new[prefix + name] = torch.cat([found, rows[len(found) :].to(found)])
        return new

    def lasting_state(self) -> dict[str, dict[str, slice | None]]:
        """What of the ``state_dict`` stays as it is while a task trains, by group.

        ``base`` is what no task changes; ``task-K`` what is task K's alone and finished. Name ->
        rows along the first dimension, None for all of it.
        """
        found: dict[str, dict[str, slice | None]] = {"base": dict.fromkeys(self._base_names())}
        for task in numbers_where(self.finished):
            found[f"task-{task}"] = dict.fromkeys(self._state_of([task]))
        return {group: names for group, names in found.items() if names}

    def _base_names(self) -> list[str]:
        """Names in the ``state_dict`` of shared parameters that no task trains."""
        learned = {id(p) for p in self.task_parameters(0)}
        return [
            f"model.{name}.{leaf}" if name else f"model.{leaf}"
            for name, module in shared_modules(self.model)
            for leaf, parameter in module._parameters.items()
            if parameter is not None and id(parameter) not in learned
        ]

    def check_count(self, state: Mapping[str, Any], prefix: str = "") -> int:
        """Of how many tasks a ``state_dict`` is; this network's number where it does not say.

        Raises:
            RuntimeError: it is of more tasks than this network.
        """
        finished = state.get(f"{prefix}finished")
        if not isinstance(finished, Tensor) or finished.dim() != 1:
            return self.num_tasks
        count = len(finished)
        if count > self.num_tasks:
            raise RuntimeError(
                f"{class_name(self)}: the state is of {count} tasks, the network has"
                f" {self.num_tasks}: net.add_tasks({count - self.num_tasks}) first"
            )
        return count

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        self._reshard()
        state_dict.update(self.complete_state(state_dict, prefix))
        if self.is_sharded or any(map(is_sharded, state_dict.values())):
            own, name = self.state_dict(prefix=prefix, keep_vars=True), class_name(self)
            state_dict.update({k: placed(name, t, own.get(k)) for k, t in state_dict.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _records(self) -> dict[str, tuple[int, int, float]]:
        """Buffers that grow with the tasks: dimension, its size, and what a new task has there."""
        return {"finished": (0, self.num_tasks, 0)}

    def _add_records(self, first: int) -> None:
        """Records of the tasks from ``first`` on, which are new."""
        for name, (dim, size, blank) in self._records().items():
            holder, _, leaf = name.rpartition(".")
            buffers = self.get_submodule(holder)._buffers
            found = buffers[leaf]
            assert found is not None
            buffers[leaf] = _padded(found, dim, size, blank)
        self._follow_classes()

    def _state_of(self, tasks: Iterable[int]) -> dict[str, Tensor]:
        """What is these tasks' alone, by name in the ``state_dict``, not copied."""
        found: dict[str, Tensor] = {}
        lists = list(holders(self.model))
        for task in tasks:
            for name, held in lists:
                found |= held[task].state_dict(prefix=f"model.{name}.{task}.")
        return found

    def _class_rows(self) -> dict[str, Tensor]:
        """By name in the ``state_dict``, what has a row for each class of a growing head.

        The tensors' last rows stand for those that a state of fewer classes lacks.
        """
        return {
            f"model.{name}.linear.{kind}" if name else f"model.linear.{kind}": parameter.detach()
            for name, module in shared_modules(self.model)
            if isinstance(module, GrowingHead)
            for kind, parameter in module.linear.named_parameters()
        }

    def _follow_classes(self) -> None:
        """After a growing head has grown."""

    def _follow_model(self) -> None:
        """After the model has got more modules or other parameters."""
        if self._structure is not None:
            self._structure = ModelStructure(self.model)
        self._state.cache.clear()
        self._state.owns.clear()
        self._follow_finished()

    def _heads(self) -> list[TaskHeads | GrowingHead]:
        found = (module for _, module in shared_modules(self.model))
        return [m for m in found if isinstance(m, (TaskHeads, GrowingHead))]

    def _head_classes(
        self, caller: str, count: int, classes: Sequence[int] | None
    ) -> dict[nn.Module, list[int]]:
        """For each head, the numbers for its new tasks."""
        heads = self._heads()
        if classes is None:
            return {head: _like_the_last(head, count) for head in heads}
        numbers = list(classes)
        if not heads:
            raise ValueError(
                f"{caller}: classes is {numbers}, wanted None: all tasks share one output layer"
            )
        is_int = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
        if len(numbers) != count or not is_int:
            raise ValueError(f"{caller}: classes is {numbers}, wanted {count} numbers above 0")
        for head in heads:
            if isinstance(head, GrowingHead) and [head.classes[-1], *numbers] != sorted(
                [head.classes[-1], *numbers]
            ):
                raise ValueError(
                    f"{caller}: classes is {numbers}, wanted for each new task the number of"
                    f" classes seen by its end, from {head.classes[-1]} and never falling"
                )
        return dict.fromkeys(heads, numbers)

    def _check_between(self, caller: str) -> None:
        """Raise unless no task is in training and all is as it was when the last was finished."""
        if (task := self.training_task) is not None:
            raise RuntimeError(
                f"{caller}: task {task} is in training: net.finish_task({task}) first, or"
                f" net.forget_task({task}), which gives its training up"
            )
        self._refuse_sharded(caller)
        if self._structure is not None:
            self._structure.check(caller, self.model)
        self.check_kept(caller)


def _like_the_last(head: TaskHeads | GrowingHead, count: int) -> list[int]:
    if isinstance(head, TaskHeads):
        return [head.heads[-1].out_features] * count  # type: ignore[list-item]
    last = head.classes[-1]
    step = last - (head.classes[-2] if len(head.classes) > 1 else 0)
    return [last + step * (k + 1) for k in range(count)]


def _padded(tensor: Tensor, dim: int, size: int, blank: float) -> Tensor:
    """A tensor with blanks up to this size along a dimension; one that is as large as it is."""
    shape = list(tensor.shape)
    missing = size - shape[dim] if dim < len(shape) else 0
    if missing <= 0:
        return tensor
    shape[dim] = missing
    return torch.cat([tensor, tensor.new_full(shape, blank)], dim)
