"""The calls of an optimizer's step, kept from step to step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor

from maskcl.optim.protected_elements import ProtectedElements
from maskcl.optim.update_calls import Call, Grads, Parameters, check_state

# (optimizer, by group the numbers of its parameters that have a gradient, what may not move,
# found_inf, dtype of new state of parameters of half precision) -> calls
Make = Callable[
    [Any, list[list[int]], ProtectedElements, Tensor | None, Any],
    list[Call],
]


class _Seen(NamedTuple):
    """All that a step's calls follow from.

    Attributes:
        held: parameters and state, known by identity.
        options: of all groups, known by identity.
        layout: names of options and state, whether parameters have no gradient, sizes of groups.
    """

    held: list[Any]
    options: list[Any]
    layout: tuple[list[str], list[bool], list[int]]


_NONES, _VALUES, _chained = repeat(None), dict.values, chain.from_iterable
_NOTHING = _Seen([], [], ([], [], []))


def _look(optimizer: Any, parameters: Parameters, grads: Grads) -> _Seen:
    groups, entries = optimizer.param_groups, optimizer.state.values()
    # Chains and maps, in every step: loops over the state take several times as long.
    held = [*parameters, *optimizer.state, *_chained(map(_VALUES, entries))]
    names = [*_chained(groups), *_chained(entries)]
    options: list[Any] = []
    sizes: list[int] = []
    for group in groups:
        options += group.values()
        sizes.append(len(group["params"]))
        if type(betas := group.get("betas")) is list:  # which may change in place
            options += betas
    return _Seen(held, options, (names, [*map(is_, grads, _NONES)], sizes))


def _are_same(now: list[Any], before: list[Any]) -> bool:
    """By identity; what was there before is held, so that nothing else can be in its place."""
    return len(now) == len(before) and all(map(is_, now, before))


class Calls:
    """The calls of a step, kept while the groups and the state are what they were.

    A schedule changes options at every step: the calls then take them over, and stay.

    Args:
        make: makes them: `adam_calls` or `sgd_calls`.
        elements: what may not move.
        state_dtype: of new state of parameters of half precision, None for theirs.
    """

    def __init__(self, make: Make, elements: ProtectedElements, state_dtype: Any) -> None:
        self._make = make
        self._made_of = elements, state_dtype
        self._seen = _NOTHING
        self._calls: list[Call] = []

    def of(
        self, optimizer: Any, parameters: Parameters, grads: Grads, found_inf: Tensor | None
    ) -> list[Call]:
        """The calls that step all parameters that have a gradient.

        Args:
            optimizer: with the groups and the state.
            parameters: of all groups.
            grads: of these.
            found_inf: 0-d, not 0 where nothing is to be written.
        """
        seen, before = _look(optimizer, parameters, grads), self._seen
        is_there = seen.layout == before.layout and _are_same(seen.held, before.held)
        if is_there and _are_same(seen.options, before.options):
            return self._calls
        self._seen = _NOTHING  # where something raises, no call is left that has half followed
        if is_there and all(call.follow(optimizer.param_groups) for call in self._calls):
            self._seen = seen
            return self._calls
        self._calls = self._made(optimizer, grads, found_inf)
        # Calls that make state are of this step alone, and so are those that leave some out.
        stepped = sum(len(call.parameters) for call in self._calls if not call.begins)
        is_whole = stepped == sum(grad is not None for grad in grads)
        if is_whole and _are_same(seen.held, _look(optimizer, parameters, grads).held):
            self._seen = seen
        return self._calls

    def _made(self, optimizer: Any, grads: Grads, found_inf: Tensor | None) -> list[Call]:
        found: list[list[int]] = []
        start = 0
        for group in optimizer.param_groups:
            stop = start + len(group["params"])
            found.append([n for n in range(start, stop) if grads[n] is not None])
            start = stop
        elements, state_dtype = self._made_of
        calls = self._make(optimizer, found, elements, found_inf, state_dtype)
        for call in calls:
            check_state(call)
            call.follow(optimizer.param_groups)
        return calls
