"""A guard around any optimizer's step: protected weights stay as they are, bit for bit.

A gradient of zero does not keep a weight in place. Momentum and Adam's moments carry earlier
gradients on, and weight decay moves every weight. The guard lets the optimizer do as it likes and
then puts the protected elements back.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from maskcl import backends
from maskcl.shards import local

if TYPE_CHECKING:
    from maskcl.nn import Protection


def guard(optimizer: Optimizer, protection: Protection, exact: bool = True) -> Guard:
    """Guard ``optimizer`` until ``Guard.remove``.

    After each step the protected elements of every parameter are put back from a copy taken here,
    and so is optimizer state of a parameter's shape that exists here and is not zero there. State
    that the optimizer creates later, or that was zero, is made zero there. Plain SGD without
    momentum and weight decay is left alone: it cannot move an element whose gradient is zero.

    Args:
        optimizer: any ``torch.optim.Optimizer``; parameters it does not hold do not matter, those
            of groups that are added later do.
        protection: which elements, from ``HATNetwork.protection()``; taken as it is now.
        exact: exact protection, else ``min``.

    Raises:
        RuntimeError: the network no longer has the parameters of ``protection``; a step raises the
            same.
    """
    return Guard(optimizer, protection, exact)


class Guard:
    """What `guard` returns. Holds a copy of the parameters that have protected elements."""

    def __init__(self, optimizer: Optimizer, protection: Protection, exact: bool) -> None:
        protection.check_parameters("guard")
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise TypeError(
                f"guard: optimizer is a {type(optimizer).__name__} without torch's step hooks,"
                " wanted a torch.optim.Optimizer: call protect() on the one inside that steps"
            )
        self._protection = protection
        self._fraction = protection.fraction(exact=exact)
        self._exact = exact
        self._held: list[int] = []
        self._entries: list[_Entry] = []
        self._saved: list[Tensor] | None = None
        self._saved_state: dict[tuple[int, str], Tensor] = {}
        self._before(optimizer)
        self._handles = [
            # Hyper-parameters may change between steps: plain SGD may have gained momentum.
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
        ]

    def remove(self) -> None:
        """Let the optimizer go; the copies are freed."""
        for handle in self._handles:
            handle.remove()
        self._entries, self._saved, self._saved_state = [], None, {}

    def _find_entries(self, held: list[int]) -> None:
        """Protected parameters among those that the optimizer holds, which are others than before.

        Copies are taken anew: what the guard kept so far is in the parameters.
        """
        self._held, self._saved, self._saved_state = held, None, {}
        mine = set(held)
        known = self._protection
        sides = zip(*known.sides, strict=True)
        self._entries = [
            (parameter, ends)
            for name, parameter, ends in zip(known.names, known.parameters, sides, strict=True)
            if id(parameter) in mine and self._fraction[name] > 0
        ]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._protection.check_parameters(f"{type(optimizer).__name__}.step")
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if held != self._held:
            self._find_entries(held)
        if self._saved is not None or not self._entries or _keeps_zero_gradients(optimizer):
            return
        self._saved = [local(parameter).detach().clone() for parameter, _ in self._entries]
        for parameter, sides in self._entries:
            for key, value in _state_like(optimizer, parameter):
                # A resumed run's is 0 there, as a guard left it: that needs no copy.
                if not self._is_zero(value, sides):
                    self._saved_state[id(parameter), key] = value.clone()

    def _is_zero(self, value: Tensor, sides: _Sides) -> bool:
        """Whether the bits of all protected elements are 0; waits for the device."""
        kept = torch.zeros_like(value)
        self._restore([kept], [value], [sides])
        return not bool(kept.contiguous().view(torch.uint8).any())

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if self._saved is None:
            return
        parameters = [local(parameter) for parameter, _ in self._entries]
        sides = [sides for _, sides in self._entries]
        self._restore(parameters, self._saved, sides)
        self._restore_state(optimizer)

    def _restore_state(self, optimizer: Optimizer) -> None:
        kept: list[tuple[Tensor, Tensor, _Sides]] = []
        fresh: dict[torch.dtype, list[tuple[Tensor, _Sides]]] = defaultdict(list)
        for parameter, sides in self._entries:
            for key, value in _state_like(optimizer, parameter):
                saved = self._saved_state.get((id(parameter), key))
                if saved is not None:
                    kept.append((value, saved, sides))
                else:
                    fresh[value.dtype].append((value, sides))
        if kept:
            values, saved_values, kept_sides = map(list, zip(*kept, strict=True))
            self._restore(values, saved_values, kept_sides)
        for entries in fresh.values():
            tensors = [value for value, _ in entries]
            out, inside, groups = _columns([sides for _, sides in entries])
            clamp = backends.select("clamp_grads_", tensors[0])
            clamp(tensors, out, inside, groups, self._exact, "hat", [0.0] * len(tensors), 0)

    def _restore(self, tensors: list[Tensor], saved: list[Tensor], sides: list[_Sides]) -> None:
        out, inside, groups = _columns(sides)
        restore = backends.select("restore_protected_", tensors[0])
        restore(tensors, saved, out, inside, groups, self._exact)


_Sides = tuple[Tensor, Tensor, int]
_Entry = tuple[nn.Parameter, _Sides]


def _columns(sides: list[_Sides]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    return [s[0] for s in sides], [s[1] for s in sides], [s[2] for s in sides]


def _state_like(optimizer: Optimizer, parameter: nn.Parameter) -> list[tuple[str, Tensor]]:
    """The optimizer's state of this parameter that has one element for each of its own."""
    return [
        (key, local(value))
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
        and value.shape == parameter.shape
        and value.device == parameter.device
        and value.is_floating_point()
    ]


def _keeps_zero_gradients(optimizer: Optimizer) -> bool:
    # Maximizing adds the zero: -0 becomes 0.
    return type(optimizer) is SGD and not any(
        group["momentum"] or group["weight_decay"] or group["maximize"]
        for group in optimizer.param_groups
    )
