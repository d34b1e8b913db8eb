"""How much of a network is free, and what forgetting a task would free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from maskcl.nn.hat.protection import Protection, protected_count
from maskcl.nn.tasks.state import WORD


class Freed(NamedTuple):
    """What forgetting a task frees: ``units`` and ``weights``, of all layers together."""

    units: int
    weights: int


class Capacity(dict[str, float]):
    """By layer, the share of its units that finished tasks use; and all of it as counts.

    A unit is free where no finished task uses it, a weight where no one task uses both its ends
    (and so exact protection leaves it to later tasks). It is of the moment when it was made.

    Args:
        spans: layer -> its slice of U.
        tasks: int64 [U, W], the units' tasks; copied to the CPU.
        protection: what the same tasks need of the shared parameters.

    Attributes:
        units: by layer, how many it has.
        free_units: by layer, how many are free.
        weights: by shared parameter (biases too), how many elements it has.
        free_weights: by shared parameter, how many are free.
    """

    def __init__(self, spans: Mapping[str, slice], tasks: Tensor, protection: Protection) -> None:
        self._tasks = tasks.detach().to("cpu", copy=True)
        self._spans = dict(spans)
        sides = zip(
            protection.names,
            (parameter.numel() for parameter in protection.parameters),
            protection.out_tasks,
            protection.in_tasks,
            protection.groups,
            strict=True,
        )
        self._sides = [] if protection.empty else list(sides)
        used = (self._tasks != 0).any(1)
        self.units = {name: span.stop - span.start for name, span in spans.items()}
        self.free_units = {name: int((~used[span]).sum()) for name, span in spans.items()}
        super().__init__(
            {
                name: (count - self.free_units[name]) / count if count else float("nan")
                for name, count in self.units.items()
            }
        )
        named = zip(protection.names, protection.parameters, strict=True)
        self.weights = {name: parameter.numel() for name, parameter in named}
        taken = self._protected()
        self.free_weights = {n: count - taken.get(n, 0) for n, count in self.weights.items()}

    def freed_by(self, task: int) -> Freed:
        """What ``forget_task(task, reset=True)`` would free; nothing where it is not finished.

        It waits for the device.
        """
        units, weights = self.freed_in(task)
        return Freed(sum(units.values()), sum(weights.values()))

    def freed_in(self, task: int) -> tuple[dict[str, int], dict[str, int]]:
        """The same by layer and by parameter."""
        bit, word = _bit(task), task // WORD
        if not 0 <= word < self._tasks.shape[1]:
            raise ValueError(f"Capacity.freed_by: task is {task}, wanted one of the network's")
        only = (self._tasks[:, word] == bit) & ((self._tasks != 0).sum(1) == 1)
        units = {name: int(only[span].sum()) for name, span in self._spans.items()}
        now, then = self._protected(), self._protected(without=task)
        return units, {name: now.get(name, 0) - then.get(name, 0) for name in self.weights}

    def _protected(self, without: int | None = None) -> dict[str, int]:
        """By parameter, elements that tasks other than ``without`` protect."""
        found = {}
        for name, numel, out, into, groups in self._sides:
            if without is not None and without // WORD < out.shape[1]:
                out = out.clone()
                out[:, without // WORD] &= ~_bit(without)
            found[name] = protected_count(out, into, groups, numel)
        return found


def _bit(task: int) -> int:
    """A task's bit in its word, as an int64."""
    bit = 1 << (task % WORD)
    return bit if bit < 1 << 63 else bit - (1 << 64)
