"""What an optimizer's step must leave alone, whichever optimizer it is.

A gradient of zero does not keep a weight in place: momentum and moments carry earlier gradients on,
and weight decay moves every weight. hat-cl's users build their own optimizer and tell nobody, so
the first forward that trains puts two hooks on torch's optimizers in general. They touch nothing
but parameters of modules that have trained, which are held weakly.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl._locked_elements import Sides, alike, clear_grads, clear_state, columns
from maskcl.ops import restore_protected_

# With no decay these leave an element where it is whose gradient and state are zero.
_STILL = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
)


@dataclass
class _Record:
    """What ran since the last step: the tasks, and those that were locked all the time."""

    ran: set[int]
    locked: tuple[int, ...] | None
    stepped: bool = False


class Owner:
    """A module with parameters that a step has to leave alone."""

    _record: _Record | None = None
    # The locked tasks that optimizers' states have been cleared for.
    _settled: tuple[int, ...] | None = None

    def own_parameters(self) -> list[list[nn.Parameter]]:
        """By task, what belongs to it alone."""
        return []

    def shared_parameters(self, locked: tuple[int, ...]) -> list[tuple[nn.Parameter, Sides]]:
        """What tasks share, with the tasks among ``locked`` that use it."""
        return []

    def bound(self, task: int) -> None:
        """Called behind a step in which ``task`` ran."""

    @eager
    def note(self, task: int, locked: tuple[int, ...] | None) -> None:
        """Say that ``task`` runs in training, while ``locked`` are not to change."""
        record = self._record
        begins = record is None or record.stepped
        if record is None or record.stepped:
            self._record = _Record({task}, locked)
        else:
            record.ran.add(task)
            if locked != record.locked and record.locked is not None:
                record.locked = tuple(k for k in record.locked if k in (locked or ()))
        _OWNERS.add(self)
        _install()
        if locked and locked != self._settled:
            self._settled = locked
            if begins:
                # What is left of gradients that an earlier step has used.
                clear_grads(self.shared_parameters(locked))
            for watch in _WATCHES.values():
                watch.settle(self, locked)

    def locked_parameters(self) -> list[tuple[nn.Parameter, Sides]]:
        """What tasks share and the next step must not move."""
        record = self._record
        if record is None or not record.locked:
            return []
        return self.shared_parameters(record.locked)

    def foreign_parameters(self) -> list[nn.Parameter]:
        """What belongs to tasks that did not run."""
        ran = self._record.ran if self._record is not None else set()
        rows = enumerate(self.own_parameters())
        return [p for k, row in rows if k not in ran for p in row]


_OWNERS: weakref.WeakSet[Owner] = weakref.WeakSet()
_HANDLES: list[Any] = []


@dataclass
class _Watch:
    """One optimizer: the parameters it holds, and copies for the step that it is in."""

    optimizer: weakref.ReferenceType[Optimizer]
    held: set[int]
    inside: bool = False
    restores: bool = False
    # Modules with parameters in it, while it is in a step.
    owners: list[Owner] | None = None
    saved: dict[int, Tensor] = field(default_factory=dict)

    def settle(self, owner: Owner, locked: tuple[int, ...]) -> None:
        """Make the optimizer forget what it wanted to do with newly locked elements."""
        optimizer = self.optimizer()
        rows = [row for row in owner.shared_parameters(locked) if id(row[0]) in self.held]
        if optimizer is None or not rows:
            return
        clear_state(optimizer, rows)
        if self.inside and self.restores:
            # A closure runs the forward inside the step; the parameters have not moved yet.
            for parameter, _ in rows:
                self.saved.setdefault(id(parameter), parameter.detach().clone())


_WATCHES: weakref.WeakKeyDictionary[Optimizer, _Watch] = weakref.WeakKeyDictionary()


def _install() -> None:
    if not _HANDLES:
        _HANDLES.append(register_optimizer_step_pre_hook(_before))
        _HANDLES.append(register_optimizer_step_post_hook(_after))


def _owners(held: set[int]) -> Iterator[Owner]:
    for owner in list(_OWNERS):
        if any(id(p) in held for p in owner.parameters(recurse=False)) or any(  # type: ignore[attr-defined]
            id(p) in held for row in owner.own_parameters() for p in row
        ):
            yield owner


@eager
@torch.no_grad()
def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _OWNERS:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    owners = list(_owners(held))
    watch = _WATCHES.get(optimizer)
    if watch is None:
        watch = _WATCHES[optimizer] = _Watch(weakref.ref(optimizer), held)
        for owner in owners:
            if owner._record is not None and owner._record.locked:
                watch.settle(owner, owner._record.locked)
    watch.held, watch.inside, watch.restores = held, True, not _keeps_still(optimizer)
    watch.saved = {}
    closure = any(a is not None for a in (*args[1:], *kwargs.values()))
    # A closure runs forwards, which may be other modules' first.
    watch.owners = None if closure else owners
    for owner in owners:
        for parameter in owner.foreign_parameters():
            # Momentum and decay act on whatever has a gradient, were it zero.
            if parameter.grad is not None and not closure:
                parameter.grad = None
        kept = [p for p, _ in owner.locked_parameters()] if watch.restores else []
        if closure:
            kept += [p for row in owner.own_parameters() for p in row]
        watch.saved.update((id(p), p.detach().clone()) for p in kept if id(p) in held)


@eager
@torch.no_grad()
def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    watch = _WATCHES.get(optimizer)
    if watch is None:
        return
    rows: list[tuple[nn.Parameter, Sides]] = []
    for owner in _owners(watch.held) if watch.owners is None else watch.owners:
        if watch.saved:
            rows += [r for r in owner.locked_parameters() if id(r[0]) in watch.saved]
        for parameter in owner.foreign_parameters():
            if (saved := watch.saved.get(id(parameter))) is not None:
                parameter.copy_(saved)
        if (record := owner._record) is not None:
            record.stepped = True
            for task in record.ran:
                owner.bound(task)
    for batch in alike(rows):
        parameters, sides = [p for p, _ in batch], [s for _, s in batch]
        saved_rows = [watch.saved[id(p)] for p in parameters]
        out, into, groups = columns(sides)
        restore_protected_(parameters, saved_rows, out, into, groups=groups)
    if rows:
        clear_state(optimizer, rows)
    watch.inside, watch.saved, watch.owners = False, {}, None


def _keeps_still(optimizer: Optimizer) -> bool:
    return type(optimizer) in _STILL and not any(
        group.get("weight_decay") for group in optimizer.param_groups
    )
