"""What every network of many tasks has: a model, an active task, and which tasks are finished."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskcl.nn.tasks.active import ActiveTask, Entering, active_of
from maskcl.nn.tasks.frozen_modules import freeze_norm, thaw_norm
from maskcl.nn.tasks.inferring import Inferring
from maskcl.nn.tasks.kept_bits import KeptBits, changed_since, state_fingerprints
from maskcl.nn.tasks.own_parts import (
    all_parameters,
    drop_gradients,
    own_modules,
    shared_modules,
    train_only,
)
from maskcl.nn.tasks.recomputation import remember_for_recomputation
from maskcl.nn.tasks.state import NO_TASK, TaskAware, TaskState
from maskcl.nn.tasks.task_forwards import TaskForwards
from maskcl.nn.tasks.unlearning import Forgotten
from maskcl.sharded_modules import class_name, reshard
from maskcl.shards import are_plain, is_sharded

if TYPE_CHECKING:
    from typing_extensions import Self


_IS_META = attrgetter("is_meta")


class TaskNetwork(TaskForwards, Inferring):
    """Base of HATNetwork, PiggybackNetwork and ImportanceNetwork.

    Args:
        model: taken over, not copied.
        num_tasks: how many tasks there is room for, T; more can be added later (`LaterTasks`).

    Attributes:
        finished: bool [T].
        is_sharded: whether ``fully_shard`` was called for it or modules of it, as far as it knows.

    Raises:
        ValueError: num_tasks is not at least 1.
    """

    finished: Tensor
    is_sharded: bool = False
    _is_changed: bool = False  # what finished tasks need, when it was last compared

    def __init__(self, model: nn.Module, num_tasks: int) -> None:
        super().__init__()
        if not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"{class_name(self)}: num_tasks is {num_tasks!r}, wanted at least 1")
        self._state = self._new_state()
        self.num_tasks = num_tasks
        self.model = model
        self.training = model.training
        finished = torch.zeros(num_tasks, dtype=torch.bool, device=self._device())
        self.register_buffer("finished", finished)
        self._kept: KeptBits | None = None
        self._done: list[int] = []
        self._begun: int | None = None
        self._resets: dict[int, int] = {}
        self.register_load_state_dict_pre_hook(_before_loading)
        self.register_load_state_dict_post_hook(_after_loading)
        self.register_state_dict_pre_hook(_take_shards)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the active task.

        Raises:
            RuntimeError: no task is active; or, in a PiggybackNetwork, it is neither finished nor
                in training.
        """
        self._prepared()
        return self.model(*args, **kwargs)

    def begin_task(self, task: int) -> None:
        """Let what the task trains require gradients, and nothing else; all gradients are dropped.

        Raises:
            RuntimeError: the task is finished.
        """
        self._check_open("begin_task", task)
        parameters = all_parameters(self)
        drop_gradients(parameters)
        train_only(parameters, self.task_parameters(task))
        self._begun = task
        self._changed()

    @property
    def training_task(self) -> int | None:
        """The task begun last and not finished since, nor forgotten; None where there is none."""
        return self._begun

    def times_reset(self, task: int) -> int:
        """How often a task was forgotten with ``reset``: its optimizers of before know too much."""
        return self._resets.get(task, 0)

    def _give_up(self, task: int, reset: bool) -> None:
        """End a task's training, if it is in training."""
        self._resets[task] = self.times_reset(task) + reset
        self._begun = None if self._begun == task else self._begun

    def kept_bits(self) -> dict[str, Tensor]:
        """Fingerprints of all that the finished tasks' outputs depend on, by name; {} for none."""
        kept = self._kept_now()
        return {} if kept is None else kept.named()

    def _kept_now(self) -> KeptBits | None:
        """The same, of all tasks together; None where nothing is kept."""
        return None

    def check_kept(self, caller: str = "check_kept") -> None:
        """Raise unless finished tasks have the bits that they had when the last was finished.

        ``begin_task``, ``finish_task`` and the methods' ``end_task`` do; here it is for after the
        last task.

        Raises:
            RuntimeError: the message names what changed.
        """
        if (problem := self._changed_since(caller)) is not None:
            raise RuntimeError(problem)

    def _changed_since(self, caller: str) -> str | None:
        problem = None
        if self._kept is not None:
            self._reshard()
            now = self._kept_now()
            now = KeptBits([], {}, {}) if now is None else now
            problem = changed_since(caller, self._kept, now)
        self._is_changed = problem is not None
        return problem

    def _warn_if_changed(self, caller: str) -> None:
        """Where nothing is to be refused, but what comes would hide it."""
        problem = self._changed_since(caller)
        if self._is_changed:  # that training has diverged is no matter here
            warnings.warn(str(problem), UserWarning, stacklevel=4)

    def _follow_finished(self) -> None:
        """After a change of what is finished: its norms stand still, its bits are remembered.

        What was changed before stays known as changed, as long as a finished task is left.
        """
        self._changed()
        before, self._done = self._done, numbers_where(self.finished)
        done = set(self._done)
        if self._begun in done:
            self._begun = None
        for task in done.symmetric_difference(before):
            for _, module in own_modules(self.model, task):
                if task in done:
                    freeze_norm(module)
                else:
                    thaw_norm(module, self.training)
        if not (self._is_changed and done):
            self._remember_bits()

    def _remember_bits(self) -> None:
        self._reshard()
        is_real = not any(map(_IS_META, all_parameters(self)))
        self._kept = self._kept_now() if is_real else None
        self._is_changed = False

    def finish_task(self, task: int) -> None:
        """Record that the task is trained, and its masks; freeze all that is its own."""
        raise NotImplementedError

    def forget_task(self, task: int, reset: bool = False, *, seed: int = 0) -> Forgotten | None:
        """Take a task's record back; with ``reset``, also all that was learned of it."""
        raise NotImplementedError

    def grow(self, units: Any, *, seed: int = 0, example_inputs: Any = None) -> None:
        """Widen layers, where the network has units that fill up.

        Raises:
            RuntimeError: it has none.
        """
        raise RuntimeError(
            f"{class_name(self)}.grow: only a HATNetwork has units that tasks fill up"
        )

    def task_parameters(self, task: int) -> list[nn.Parameter]:
        """What a task trains."""
        raise NotImplementedError

    def task(self, index: int, scale: float | Tensor | None = None) -> Entering[Self]:
        """Make a task active in this thread or coroutine, for ``with``.

        It nests, and what was active before returns on any exit. Threads and coroutines that run
        the network each enter their own; a thread that is started inside begins without any.

        Args:
            index: of the task, from 0.
            scale: None for the task's own masks as they count, hard ones. For the soft masks that
                train, a HATNetwork takes a positive number, or a 0-d tensor on its device (which
                may be filled anew in place).

        Raises:
            ValueError: no such task, or the network takes no such scale.
        """
        self._check_task("task", index)
        scale = self._checked_scale(index, scale)
        return Entering(self, lambda: self._new_active(index, scale))

    def _new_active(self, task: int, scale: Tensor | None) -> ActiveTask:
        active = ActiveTask(self._state, task, scale)
        self._fill(active)
        return active

    def _fill(self, active: ActiveTask) -> None:
        """Put in what the task has to itself, as it is now."""
        active.own = self._state.kept_own(active.task)
        active.narrow = self._state.narrow.get(active.task)
        active.version = self._state.version

    def _changed(self) -> None:
        """Say that what tasks have to themselves is no longer what it was."""
        self._state.version += 1

    def _prepared(self) -> ActiveTask:
        """The active task, ready for a forward."""
        active = active_of(self._state)
        if active is None:
            raise RuntimeError(f"{class_name(self)}: {NO_TASK}")
        active.learns = torch.is_grad_enabled()
        if not torch.compiler.is_compiling():
            if active.version != self._state.version:
                self._fill(active)
            remember_for_recomputation(active, outermost=True)
        return active

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # What was changed before stays known as changed: some loops call ``to`` again and again.
        self._changed_since("_apply")
        result = super()._apply(fn, recurse)
        self._changed()
        if not self._is_changed:
            self._remember_bits()
        return result

    def _new_state(self) -> TaskState:
        return TaskState()

    def _checked_scale(self, index: int, scale: float | Tensor | None) -> Tensor | None:
        """The scale as a tensor; here, where masks are never soft, only None will do."""
        if scale is not None:
            raise ValueError(f"{class_name(self)}.task: scale is {scale!r}, wanted None")
        return None

    def _state_fingerprints(self, without: Iterable[str]) -> KeptBits | None:
        """Of parameters and buffers but these and what unfinished tasks have to themselves."""
        done = torch.nonzero(self.finished).flatten().tolist()
        return state_fingerprints(self, self.model, done, {*without, "inference"}) if done else None

    def _reshard(self) -> None:
        """Have the parameters in place that train, where `fully_shard` put others there.

        What belongs to the rows of a parameter is sharded with it.
        """
        modules = chain([self], (module for _, module in shared_modules(self.model)))
        self.is_sharded = reshard(modules)

    def take_shards(self) -> None:
        """The same before a step: a forward of another task may have come since the last."""
        if self.is_sharded:
            self._reshard()

    def _refuse_sharded(self, caller: str, way_on: str = "do this before fully_shard") -> None:
        """Raise RuntimeError where parameters are sharded, and what is asked for wants all."""
        self._reshard()
        if are_plain(all_parameters(self)):
            return
        for name, parameter in self.named_parameters():
            if is_sharded(parameter):
                raise RuntimeError(f"{caller}: {name} is sharded: {way_on}")

    def _device(self) -> torch.device:
        """Of the model's first parameter."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    def _own_modules(self, task: int) -> Iterator[tuple[str, nn.Module]]:
        """Names below ``model`` and modules of what a task has to itself."""
        return own_modules(self.model, task)

    def _check_task(self, caller: str, task: int) -> None:
        if not isinstance(task, int) or not 0 <= task < self.num_tasks:
            raise ValueError(
                f"{class_name(self)}.{caller}: task is {task!r}, wanted an int from 0 to"
                f" {self.num_tasks - 1}"
            )

    def _check_open(self, caller: str, task: int) -> None:
        self._check_task(caller, task)
        self._reshard()
        if not self.finished.is_meta and bool(self.finished[task]):
            raise RuntimeError(
                f"{class_name(self)}.{caller}: task {task} is finished;"
                f" {way_on(self.finished.tolist())}"
            )


def _take_shards(net: TaskNetwork, *_: Any) -> None:
    net._reshard()


def numbers_where(finished: Tensor) -> list[int]:
    """Tasks that are; none on the meta device, where memory is planned and nothing looked up."""
    return [] if finished.is_meta else torch.nonzero(finished).flatten().tolist()


def way_on(finished: list[bool]) -> str:
    """What to do where a finished task was asked for: the end of a sentence."""
    if False in finished:
        return f"task {finished.index(False)} is the first that is not"
    return f"all {len(finished)} are, and net.add_tasks(1) makes room for one more"


def _before_loading(net: TaskNetwork, *_: Any) -> None:
    net._changed_since("load_state_dict")


def _after_loading(net: TaskNetwork, incompatible_keys: Any) -> None:
    """Follow a loaded state; say so where it takes a finished task back.

    Where something had been changed, a state of the same tasks may have been taken after that: then
    it has to have the bits that are remembered.
    """
    before = net._done
    if net._is_changed and numbers_where(net.finished) == before:
        net._warn_if_changed(f"{class_name(net)}.load_state_dict")
    else:
        net._is_changed = False
    net._follow_finished()
    if lost := [task for task in before if task not in net._done]:
        warnings.warn(
            f"{class_name(net)}: in the loaded state tasks {lost} are not finished, which they"
            " were here: nothing protects them from here on",
            UserWarning,
            stacklevel=3,
        )


def check_members(owner: str, model: nn.Module, num_tasks: int) -> None:
    """Raise ValueError unless the task-aware modules of a model are free to join this network.

    Args:
        owner: name of the network's class.
        model: its model.
        num_tasks: T.
    """
    for name, module in model.named_modules():
        if not isinstance(module, TaskAware):
            continue
        if module._state is not None:
            raise ValueError(f"{owner}: module {name!r} belongs to another network")
        if module._network not in (None, owner):
            raise ValueError(
                f"{owner}: module {name!r} is a {class_name(module)}, which wants a"
                f" {module._network}"
            )
        found = getattr(module, "num_tasks", num_tasks)
        if found != num_tasks:
            raise ValueError(f"{owner}: module {name!r} is for {found} tasks, wanted {num_tasks}")
