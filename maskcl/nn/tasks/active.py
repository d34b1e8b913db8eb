"""Which task is active: it belongs to the caller's thread or coroutine, never to the network.

``with net.task(k):`` puts an `ActiveTask` into a context variable. So a server's threads, or
coroutines in turns, run one network in different tasks. Compiled code reads it as data: the tensors
and modules in it are what differs between tasks, and no number of a task is a constant of a graph.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from maskcl.nn.tasks.narrow import Narrow

Net = TypeVar("Net")


class ActiveTask:
    """One ``with net.task(k):``, as the network's modules see it.

    Attributes:
        state: the network's `TaskState`, which says whose active task this is.
        task: index of the task.
        scale: 0-d tensor for soft masks, None for hard ones.
        own: what the task has to itself of each module, by ``TaskAware.place``.
        record: what the network adds about the task.
        narrow: what the task sees of the modules in a network that grew since, by place; else None.
        version: of the state, when ``own`` and ``record`` were made.
        learns: the last forward here began with gradients.
        has_masks: a forward here has made masks.
        make_masks: makes ``parts`` and ``term`` anew; None where there are no such masks.
        term: 0-d, what the network makes of them for the loss; None where nothing, or where it is
            to be made anew.
        term_weight: that it is multiplied by.
        before: what was active before, of this network or another.
    """

    def __init__(self, state: Any, task: int, scale: Tensor | None = None) -> None:
        self.state = state
        self.task = task
        self.scale = scale
        self.own: tuple[Any, ...] = ()
        self.record: Any = None
        self.narrow: dict[int, Narrow] | None = None
        self.version = -1
        self.learns = False
        self.has_masks = False
        self.make_masks: Callable[[ActiveTask], None] | None = None
        self._parts: tuple[Tensor, ...] | None = None
        self._mask: tuple[Tensor, list[int]] | None = None
        self.term: Tensor | None = None
        self.term_weight = 0.0
        self.before: ActiveTask | None = None

    @property
    def parts(self) -> tuple[Tensor, ...] | None:
        """Masks of all units as the last forward here made them, by layer.

        None before it, and behind a compiled one.
        """
        if self._mask is not None:
            mask, sizes = self._mask
            # As the forward would have cut it, whatever mode this is.
            with torch.inference_mode(False), torch.set_grad_enabled(self.learns):
                self._parts, self._mask = mask.split(sizes), None
        return self._parts

    # No setter: Dynamo of torch 2.11 would not run it.
    def set_parts(self, parts: tuple[Tensor, ...]) -> None:
        """Set ``parts``."""
        self._parts, self._mask, self.has_masks = parts, None, True

    def set_mask(self, mask: Tensor, sizes: list[int]) -> None:
        """Set ``parts`` as one tensor, which is cut only where somebody asks."""
        self._mask, self.has_masks = (mask, sizes), True

    def let_masks_go(self) -> None:
        """Forget the masks, not that there were some.

        What compiled code leaves in an object is an output of its graph, and autograd makes zeros
        for the gradient of each that nobody uses.
        """
        self._parts = self._mask = None

    def chain(self) -> Iterator[ActiveTask]:
        """This one and what is active around it, of whichever network."""
        active: ActiveTask | None = self
        while active is not None:
            yield active
            active = active.before

    def copy(self) -> ActiveTask:
        """The same, with what is active around it, whatever forwards come later."""
        new = ActiveTask.__new__(ActiveTask)
        vars(new).update(vars(self))
        new.before = None if self.before is None else self.before.copy()
        return new


_ACTIVE: ContextVar[ActiveTask | None] = ContextVar("maskcl_active_task", default=None)

# Dynamo reads context variables from torch 2.14 on, and thread-locals in every version.
_READS_CONTEXT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)


class _ThreadLocal(threading.local):
    active: ActiveTask | None

    def __init__(self) -> None:  # in each thread; Dynamo of torch 2.11 would take the class's value
        self.active = None


_LOCAL = _ThreadLocal()


def innermost() -> ActiveTask | None:
    """What was entered last in this thread or coroutine, of any network."""
    if not _READS_CONTEXT and torch.compiler.is_compiling():
        return _LOCAL.active
    return _ACTIVE.get()


def set_innermost(active: ActiveTask | None) -> None:
    """Make it what was entered last in this thread or coroutine."""
    _ACTIVE.set(active)
    if not _READS_CONTEXT:
        # Coroutines share a thread, so there compiled code is told of none rather than a wrong one.
        _LOCAL.active = None if asyncio._get_running_loop() else active


def active_of(state: Any) -> ActiveTask | None:
    """The active task of the network with this `TaskState`, None where there is none."""
    active = innermost()
    while active is not None and active.state is not state:
        active = active.before
    return active


class Entering(Generic[Net]):
    """What ``net.task(k)`` returns: a context manager that may be entered again, also elsewhere.

    Args:
        net: returned on entering.
        make: makes the active task, on entering.
    """

    def __init__(self, net: Net, make: Callable[[], ActiveTask]) -> None:
        self._net = net
        self._make = make
        self._entered: list[ActiveTask] = []

    def __enter__(self) -> Net:
        active = self._make()
        active.before = _ACTIVE.get()
        self._entered.append(active)
        set_innermost(active)
        return self._net

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        current = _ACTIVE.get()
        own = current if current in self._entered else self._entered[-1]
        assert own is not None
        self._entered.remove(own)
        if current is own:
            set_innermost(own.before)
            return
        # What was entered later and not left stays active; this one is taken out from under it.
        later = current
        while later is not None and later.before is not own:
            later = later.before
        if later is not None:
            later.before = own.before
        raise RuntimeError(
            f"net.task({own.task}) was left while another entered later was still active: a"
            " generator yielded inside `with net.task(...)`, and what it gave since then may be of"
            " another task; enter the task around each forward instead"
        )
