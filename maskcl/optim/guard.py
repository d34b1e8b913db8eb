"""A guard around any optimizer's step: protected weights stay as they are, bit for bit.

A gradient of zero does not keep a weight in place. Momentum and Adam's moments carry earlier
gradients on, and weight decay moves every weight. The guard lets the optimizer do as it likes and
then puts the protected elements back.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from maskcl import backends
from maskcl.optim.protected_block import ProtectedBlock, Sides
from maskcl.shards import local

if TYPE_CHECKING:
    from maskcl.nn import Protection


def guard(
    optimizer: Optimizer, protection: Protection, exact: bool = True, *, clamped: bool = True
) -> Guard:
    """Guard ``optimizer`` until ``Guard.remove``.

    After each step the protected elements of every parameter are put back from a copy taken here,
    and so is optimizer state of a parameter's shape that exists here and is not zero there. State
    that the optimizer creates later, or that was zero, is made zero there. Of a large tensor the
    copy is of the rows and columns that have protected elements.

    Args:
        optimizer: any ``torch.optim.Optimizer``; parameters it does not hold do not matter, those
            of groups that are added later do.
        protection: which elements, from ``HATNetwork.protection()``; taken as it is now.
        exact: exact protection, else ``min``.
        clamped: whether gradients of protected elements are 0 in each step. Then plain SGD without
            momentum and weight decay is left alone: it cannot move these.

    Raises:
        RuntimeError: the network no longer has the parameters of ``protection``; a step raises the
            same.
    """
    return Guard(optimizer, protection, exact, clamped)


class Guard:
    """What `guard` returns, with a copy of the rows and columns that have protected elements."""

    def __init__(
        self, optimizer: Optimizer, protection: Protection, exact: bool, clamped: bool = True
    ) -> None:
        protection.check_parameters("guard")
        if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            raise TypeError(
                f"guard: optimizer is a {type(optimizer).__name__} without torch's step hooks,"
                " wanted a torch.optim.Optimizer: call protect() on the one inside that steps"
            )
        self._protection = protection
        self._fraction = protection.fraction(exact=exact)
        self._exact = exact
        self._clamped = clamped
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
            _Entry(parameter, ends, ProtectedBlock(local(parameter).shape, ends, self._exact))
            for name, parameter, ends in zip(known.names, known.parameters, sides, strict=True)
            if id(parameter) in mine and self._fraction[name] > 0
        ]

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        self._protection.check_parameters(f"{type(optimizer).__name__}.step")
        held = [id(p) for group in optimizer.param_groups for p in group["params"]]
        if held != self._held:
            self._find_entries(held)
        if self._saved is not None:
            self._check_dtypes(type(optimizer).__name__)
            return
        if not self._entries:
            return
        if self._clamped and _keeps_zero_gradients(optimizer):
            return
        self._saved = [e.block.copy_of(local(e.parameter).detach()) for e in self._entries]
        for entry in self._entries:
            for key, value in _state_like(optimizer, entry.parameter):
                # A resumed run's is 0 there, as a guard left it: that needs no copy.
                if not self._is_zero(value, entry):
                    self._saved_state[id(entry.parameter), key] = entry.block.copy_of(value)

    def _check_dtypes(self, name: str) -> None:
        for entry, saved in zip(self._entries, self._saved or (), strict=True):
            if entry.parameter.dtype != saved.dtype:
                raise RuntimeError(
                    f"{name}.step: a protected parameter is {entry.parameter.dtype} and was"
                    f" {saved.dtype} when it was protected: after a conversion of the network call"
                    " protect() anew"
                )

    def _is_zero(self, value: Tensor, entry: _Entry) -> bool:
        """Whether the bits of all protected elements are 0; waits for the device."""
        part = entry.block.part_of(value)
        kept = torch.zeros_like(part)
        out, into, groups = entry.block.sides
        run = backends.select("restore_protected_", part)
        run([kept], [part], [out], [into], [groups], self._exact)
        return not bool(kept.contiguous().view(torch.uint8).any())

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        if self._saved is None:
            return
        entries = self._entries
        self._restore([local(entry.parameter) for entry in entries], self._saved, entries)
        self._restore_state(optimizer)

    def _restore_state(self, optimizer: Optimizer) -> None:
        kept: list[tuple[Tensor, Tensor, _Entry]] = []
        fresh: dict[torch.dtype, list[tuple[Tensor, Sides]]] = defaultdict(list)
        for entry in self._entries:
            for key, value in _state_like(optimizer, entry.parameter):
                saved = self._saved_state.get((id(entry.parameter), key))
                if saved is not None:
                    kept.append((value, saved, entry))
                else:
                    fresh[value.dtype].append((value, entry.sides))
        if kept:
            values, saved_values, entries = map(list, zip(*kept, strict=True))
            self._restore(values, saved_values, entries)
        for found in fresh.values():
            tensors = [value for value, _ in found]
            lists = _columns([sides for _, sides in found])
            clamp = backends.select("clamp_grads_", tensors[0])
            clamp(tensors, *lists, self._exact, "hat", [0.0] * len(tensors), 0)

    def _restore(self, tensors: list[Tensor], saved: list[Tensor], entries: list[_Entry]) -> None:
        blocks = [*saved]
        mixed = [n for n, entry in enumerate(entries) if not entry.block.is_whole]
        if mixed:
            for n in mixed:
                blocks[n] = entries[n].block.part_of(tensors[n])
            parts = [blocks[n] for n in mixed]
            lists = _columns([entries[n].block.sides for n in mixed])
            restore = backends.select("restore_protected_", parts[0])
            restore(parts, [saved[n] for n in mixed], *lists, self._exact)
        for tensor, block, entry in zip(tensors, blocks, entries, strict=True):
            entry.block.put(tensor, block)


class _Entry(NamedTuple):
    parameter: nn.Parameter
    sides: Sides
    block: ProtectedBlock


def _columns(sides: list[Sides]) -> tuple[list[Tensor], list[Tensor], list[int]]:
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
