"""The modules that differ from task to task, and what a network's share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.tasks.active import ActiveTask, active_of
from maskcl.nn.tasks.narrow import Narrow
from maskcl.nn.tasks.recomputation import remember_for_recomputation
from maskcl.ops import masked_activation
from maskcl.reference.masked_forward import activate
from maskcl.sharded_modules import class_name

EVERY = -1
"""Slot of the unit table for values that every task uses: the network's input."""
NONE = -2
"""Slot of the unit table for values that no task uses: zero padding."""
WORD = 64
"""Tasks in one int64 word of a unit's bits."""
NO_TASK = (
    "no task is active here: call the network in `with net.task(k):`, in the thread or coroutine"
    " that calls it"
)


class TaskState:
    """What a network's task-aware modules share, whoever calls them.

    Attributes:
        modules: the task-aware modules, each with its number in this list as ``place``.
        version: grows with whatever changes what a task has: see ``TaskNetwork._changed``.
        owns: by task, what it has to itself and of which version that is.
        cache: what follows from the task bits, kept until they change.
        narrow: by task finished before the network grew, what it sees, by place of the module.
    """

    def __init__(self) -> None:
        self.modules: list[TaskAware] = []
        self.version = 0
        self.owns: dict[int, tuple[int, tuple[Any, ...]]] = {}
        self.cache: dict[str, Any] = {}
        self.narrow: dict[int, dict[int, Narrow]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "cache": {}, "owns": {}}

    @property
    def task(self) -> int | None:
        """The task that is active for who asks, None where none is."""
        active = active_of(self)
        return None if active is None else active.task

    @property
    def scale(self) -> Tensor | None:
        """Its scale; None for hard masks, and where no task is active."""
        active = active_of(self)
        return None if active is None else active.scale

    def bind(self, model: nn.Module) -> None:
        """Make this the state of a model's task-aware modules."""
        self.modules = [module for module in model.modules() if isinstance(module, TaskAware)]
        for place, module in enumerate(self.modules):
            module._state, module.place = self, place

    def release(self) -> None:
        """Leave the modules without a state."""
        for module in self.modules:
            module._state = None

    def kept_own(self, task: int) -> tuple[Any, ...]:
        """What a task has to itself of each module, kept until something changes."""
        version, own = self.owns.get(task, (-1, ()))
        if version != self.version:
            own = tuple(module.of(task) for module in self.modules)
            self.owns[task] = self.version, own
        return own

    def kept(self, name: str, make: Callable[[], Any], tensors: Sequence[Tensor]) -> Any:
        """What ``make`` returned, until one of ``tensors`` is replaced or an integer one written.

        Args:
            name: of the thing kept.
            make: computes it.
            tensors: what it follows from; floating ones (parameters) count by identity alone.
        """
        versions = [t._version for t in tensors if not t.is_floating_point()]
        known = self.cache.get(name)
        if known is not None and known[:2] == (versions, [id(t) for t in tensors]):
            return known[3]
        # A tensor made in inference mode could take no part in training later.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        # The tensors are held so that no other can come by their ids.
        self.cache[name] = (versions, [id(t) for t in tensors], tensors, value)
        return value


class TaskAware(nn.Module):
    """Base of the modules that differ from task to task; a network gives them their state.

    Attributes:
        place: number of the module among the network's.
    """

    place: int = -1
    _state: TaskState | None = None
    # Class name of the only network that it can be part of; None for any.
    _network: str | None = None
    # Name of the list of modules of which each task has one; None for none.
    _per_task: str | None = None
    # Whether its further arguments are edges and what they carry, which every task uses.
    _takes_edges = False

    def of(self, task: int) -> Any:
        """What a task has to itself here; None for nothing."""
        return None

    def own_module(self, task: int) -> nn.Module:
        """A task's module, where each has one here."""
        assert self._per_task is not None
        found = self._modules[self._per_task]._modules[str(task)]  # type: ignore[union-attr]
        assert found is not None
        return found

    def _active(self) -> ActiveTask:
        state = self._state
        if state is None:
            raise RuntimeError(
                f"{class_name(self)} belongs to no network: wrap the model in a maskcl.nn."
                f"{self._network or 'HATNetwork, PiggybackNetwork or ImportanceNetwork'}, or"
                " convert an ordinary one with to_hat, to_piggyback or to_importance"
            )
        active = active_of(state)
        if active is None:
            raise RuntimeError(f"{class_name(self)}: {NO_TASK}")
        if not torch.compiler.is_compiling():
            remember_for_recomputation(active)
        return active

    def _narrow(self) -> Narrow | None:
        """What the active task sees of this module; None where that is all."""
        state = self._state
        if state is None or not state.narrow:
            return None
        narrow = self._active().narrow
        return None if narrow is None else narrow.get(self.place)

    def _own(self) -> Any:
        """What the active task has to itself here."""
        return self._active().own[self.place]


class Masked(TaskAware):
    """Base of the modules that may end in an activation and a mask.

    Attributes:
        activation: applied before the mask, one of the ops' names.
        negative_slope: of leaky_relu.
    """

    activation: str = "identity"
    negative_slope: float = 0.01
    # Which of the state's parts make the mask (their maximum); () looks units up by `mask_index`,
    # None means no mask: the output layer, and a layer whose mask comes behind its BatchNorm.
    _slots: tuple[int, ...] | None = None
    # "input" where the network writes into the output in place: backward must not need it then.
    _save: str = "auto"
    mask_index: Tensor | None

    def set_mask(
        self, slots: tuple[int, ...] | None, index: Tensor | None = None, *, written: bool = False
    ) -> None:
        """Say where the mask comes from; a HATNetwork does.

        Args:
            slots: numbers of the layers whose masks' maximum it is, or None for no mask.
            index: int64 [R, C] slots of the unit table instead, the maximum over R.
            written: the output is written in place by what follows.
        """
        self._slots = slots if index is None else ()
        self._save = "input" if written else "auto"
        device = next((p.device for p in self.parameters()), None)
        self.register_buffer(
            "mask_index", None if index is None else index.to(device), persistent=False
        )

    # Inputs as the forward's -> its output before activation and mask, for the active task.
    unmasked: Callable[..., Tensor]

    def is_shared(self) -> bool:
        """Whether that is the same for all tasks, given the same inputs."""
        return False

    def _mask(self) -> Tensor | None:
        active = self._active()
        if self._slots is None:
            return None
        if active.parts is None:
            raise RuntimeError(
                f"{class_name(self)}: the masks come from the network's forward; call the"
                " network, not a part of it"
            )
        if not self._slots:
            # The slots NONE (0) and EVERY (1) are the last two.
            mask = torch.cat(active.parts)
            table = torch.cat([mask, mask.new_zeros(1), mask.new_ones(1)])
            mask = table[self.mask_index].amax(0)
        else:
            mask = active.parts[self._slots[0]]
            for slot in self._slots[1:]:
                mask = torch.maximum(mask, active.parts[slot])
        if active.narrow is not None and (narrow := active.narrow.get(self.place)):
            return narrow.channels(mask)
        return mask

    def _finish(self, y: Tensor, channel_dim: int) -> Tensor:
        """act(y) times the mask along ``channel_dim``."""
        mask = self._mask()
        if mask is None:
            return activate(y, self.activation, self.negative_slope)
        return masked_activation(
            y,
            mask,
            activation=self.activation,
            channel_dim=channel_dim,
            negative_slope=self.negative_slope,
            save=self._save,
        )

    def extra_repr(self) -> str:
        """Arguments and, where there is one, the activation."""
        ending = "" if self.activation == "identity" else f", activation={self.activation}"
        return f"{super().extra_repr()}{ending}".removeprefix(", ")
