"""What goes when a task is forgotten: shared weights that no other task needs, and its own."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl import backends
from maskcl.nn.hat.capacity import Capacity
from maskcl.nn.hat.protection import Protection, protect, protected_count
from maskcl.nn.hat.topology import weight_layers
from maskcl.nn.hat.unit_tasks import UnitTasks
from maskcl.nn.tasks.own_parts import all_parameters, drop_gradients
from maskcl.nn.tasks.state import WORD
from maskcl.nn.tasks.unlearning import Forgotten, Removed, fresh_own, fresh_tensors, rewrite, sha256
from maskcl.randomness import derive_seed


class ForgettingTasks(UnitTasks):
    """Base of GrowingUnits: tasks are forgotten one by one, exactly."""

    @torch.no_grad()
    def forget_task(self, task: int, reset: bool = False, *, seed: int = 0) -> Forgotten | None:
        """Take a task's record back: what only it used is free, its outputs are no longer kept.

        With ``reset`` nothing of the network depends on the task's data any more, as far as no
        later task built on it: the task's embedding, head, norms and loose parameters are as new,
        and every shared weight that no remaining finished task protects is drawn anew by its
        layer's ``reset_parameters``. All else, and all other tasks' outputs, keep their bits.
        All gradients are dropped, and a task in training has to begin again.

        Args:
            task: finished or not.
            reset: whether what was learned goes too.
            seed: of what is drawn: it follows from it and the parameters' names alone.

        Returns:
            With ``reset`` what was removed, else None.

        Raises:
            RuntimeError: parameters are sharded, or a module has no ``reset_parameters``; nothing
                has changed then.
            ConversionError: the model is not the one that was followed; likewise.
        """
        self._check_task("forget_task", task)
        if reset:
            self._structure.check("HATNetwork.forget_task", self.model)
        self._warn_if_changed("HATNetwork.forget_task")
        removal = Removal(self, task, seed) if reset else None
        bit = torch.ones((), dtype=torch.int64, device=self.tasks.device) << (task % WORD)
        self.tasks[:, task // WORD] &= ~bit
        self.finished[task] = False
        self._give_up(task, reset)
        statistics = self._forget_statistics(task)
        if removal is not None:
            removal.write(statistics)
            # What requires gradients stays so: torch.matmul looks at it, and may sum otherwise.
            drop_gradients(all_parameters(self))
        self._follow_finished()
        return None if removal is None else removal.record


class Removal:
    """All that forgetting a task will write; nothing is written before ``write``.

    Args:
        net: that forgets.
        task: which.
        seed: of what is drawn anew.

    Attributes:
        record: what was removed, after ``write``.

    Raises:
        RuntimeError: as for ``unlearning.fresh_tensors``.
    """

    record: Forgotten

    def __init__(self, net: UnitTasks, task: int, seed: int) -> None:
        self._net, self._task, self._seed = net, task, seed
        capacity = Capacity(net.units, net.tasks, net.protection())
        self._freed = capacity.freed_in(task)
        self._bits = (net.tasks[:, task // WORD] >> (task % WORD)) & 1
        self._protection = _without(net, task)
        self._fresh = self._fresh_shared()
        own = fresh_own(net.model, net._own_modules(task), seed)
        self._own = {f"model.{name}": value for name, value in own.items()}
        generator = torch.Generator().manual_seed(derive_seed("forget embedding", seed, task))
        embedding = net._new_embedding(task, net.init, generator)
        self._own[f"embeddings.{task}"] = embedding

    def write(self, statistics: dict[str, Removed]) -> None:
        """Write all, and make the record, in which ``statistics`` are too."""
        tensors: dict[str, Tensor] = {}
        for name, module in self._net._own_modules(self._task):
            tensors |= module.state_dict(prefix=f"model.{name}.", keep_vars=True)
        tensors[f"embeddings.{self._task}"] = self._net.embeddings[self._task]
        removed = {f"tasks, bit {self._task}": _cleared(self._bits)}
        removed |= rewrite(tensors, self._own)
        removed |= {name: self._redraw(place) for place, name in enumerate(self._protection.names)}
        self.record = Forgotten(self._task, self._seed, *self._freed, removed | statistics)

    def _fresh_shared(self) -> dict[str, Tensor]:
        fresh: dict[str, Tensor] = {}
        for name, layer in weight_layers(self._net.model).items():
            prefix = f"model.{name}" if name else "model"
            found = fresh_tensors(name, layer, self._seed)
            fresh |= {f"{prefix}.{kind}": value for kind, value in found.items()}
        return fresh

    def _redraw(self, place: int) -> Removed:
        """Draw what is not protected of one parameter anew."""
        kept = self._protection
        parameter, new = kept.parameters[place], self._fresh[kept.names[place]]
        old = parameter.detach().clone()
        new = torch.empty_like(old).copy_(new)
        ends = [kept.out_tasks[place]], [kept.in_tasks[place]], [kept.groups[place]]
        run = backends.select("restore_protected_", parameter)
        zeros, written, free = torch.zeros_like(old), new.clone(), old.numel()
        if not kept.empty:
            run([new], [parameter], *ends, True)
            # What stays is 0 in both hashes.
            run([old], [zeros], *ends, True)
            run([written], [zeros], *ends, True)
            sides = kept.out_tasks[place], kept.in_tasks[place], kept.groups[place]
            free -= protected_count(*sides, free)
        parameter.copy_(new)
        return Removed(free, sha256(old), sha256(written))


def _without(net: UnitTasks, task: int) -> Protection:
    """What the other finished tasks need."""
    tasks, finished = net.tasks.clone(), net.finished.clone()
    bit = torch.ones((), dtype=torch.int64, device=tasks.device) << (task % WORD)
    tasks[:, task // WORD] &= ~bit
    finished[task] = False
    return protect(net.model, net.topology, tasks, finished)


def _cleared(bits: Tensor) -> Removed:
    """Of a task's units as they were recorded."""
    before = bits.to(torch.bool)
    return Removed(bits.numel(), sha256(before), sha256(torch.zeros_like(before)))
