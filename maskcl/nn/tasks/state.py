"""What the task-aware modules of a network share: the active task and its masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.ops import masked_activation
from maskcl.reference.masked_forward import activate

EVERY = -1
"""Slot of the unit table for values that every task uses: the network's input."""
NONE = -2
"""Slot of the unit table for values that no task uses: zero padding."""
WORD = 64
"""Tasks in one int64 word of a unit's bits."""


class TaskState:
    """Active task, its scale, and the masks that the network's last forward computed.

    Attributes:
        task: index of the active task, None outside ``with net.task(k):``.
        scale: 0-d tensor for soft masks, None for hard ones.
        mask: [U] masks of all units, None before the first forward of the context.
        parts: ``mask`` split by layer, views.
        cache: what follows from the task bits, kept until they change.
    """

    def __init__(self) -> None:
        self.task: int | None = None
        self.scale: Tensor | None = None
        self.mask: Tensor | None = None
        self.parts: tuple[Tensor, ...] = ()
        self.cache: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Masks belong to one forward's graph, which can be neither copied nor saved.
        return {"task": None, "scale": None, "mask": None, "parts": (), "cache": {}}

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

    def table(self) -> Tensor:
        """Masks of all units, then those of the slots NONE (0) and EVERY (1): [U + 2]."""
        assert self.mask is not None
        return torch.cat([self.mask, self.mask.new_zeros(1), self.mask.new_ones(1)])


class TaskAware(nn.Module):
    """Base of the modules that differ from task to task; a network gives them their state."""

    _state: TaskState | None = None
    # Class name of the only network that it can be part of; None for any.
    _network: str | None = None
    # Whether its further arguments are edges and what they carry, which every task uses.
    _takes_edges = False

    def _active(self) -> tuple[TaskState, int]:
        state = self._state
        if state is None:
            raise RuntimeError(
                f"{type(self).__name__} belongs to no network: wrap the model in a maskcl.nn."
                f"{self._network or 'HATNetwork, PiggybackNetwork or ImportanceNetwork'}, or"
                " convert an ordinary one with to_hat, to_piggyback or to_importance"
            )
        if state.task is None:
            raise RuntimeError(
                f"{type(self).__name__}: no task is active, run the network in `with net.task(k):`"
            )
        return state, state.task


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

    def _mask(self) -> Tensor | None:
        state, _ = self._active()
        if self._slots is None:
            return None
        if not state.parts:
            raise RuntimeError(
                f"{type(self).__name__}: the masks come from the network's forward; call the"
                " network, not a part of it"
            )
        if not self._slots:
            return state.table()[self.mask_index].amax(0)
        mask = state.parts[self._slots[0]]
        for slot in self._slots[1:]:
            mask = torch.maximum(mask, state.parts[slot])
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
