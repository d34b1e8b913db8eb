"""From an optimizer's groups and state to calls of the op ``update``: one for all groups alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter, is_
from typing import Any, NamedTuple

from torch import Tensor, nn

from maskcl import backends
from maskcl.optim.protected_elements import ProtectedElements
from maskcl.shards import local

Group = dict[str, Any]
Parameters = list[nn.Parameter]
Grads = list[Tensor | None]
_GRAD = attrgetter("grad")


class Scaling(NamedTuple):
    """What all gradients of a step are divided by, and what bounds them.

    Attributes:
        scale: 0-d, of the loss; None for 1.
        found_inf: 0-d, not 0 where nothing is to be written; None for never.
        norm: 0-d, of the unscaled gradients; None for no bound.
        max_norm: the bound.
        draw: 0-d, of the random numbers that round bfloat16; None for rounding to nearest.
        seed: of them.
    """

    scale: Tensor | None
    found_inf: Tensor | None
    norm: Tensor | None = None
    max_norm: float = 0.0
    draw: Tensor | None = None
    seed: int = 0


class Kind(NamedTuple):
    """An op, and how groups tell it what to do.

    Attributes:
        op: its name.
        options: names of what the groups of one call have to share.
        pace: from one of these groups and the call's state to what the op takes of the options;
            None where the state is not what they want.
    """

    op: str
    options: tuple[str, ...]
    pace: Callable[[Group, list[list[Tensor]]], tuple[Any, ...] | None]


@dataclass(eq=False)
class Call:
    """One call of the op, all but the gradients and what scales them.

    Attributes:
        kind: the op.
        parameters: that it steps.
        numbers: of each, its number among all of the optimizer's.
        groups: of each, the number of its group.
        state: a list of each kind.
        sides: out_tasks, in_tasks and groups of convolutions.
        exact: whether protection is exact, else "min".
        bounds: of each, its largest magnitude.
        places: of each, the number of its first element among those of all of the optimizer's.
        sharding: how the parameters are sharded, None where they are not.
        first: what the op takes behind the options: that the state has not been written.
    """

    kind: Kind
    parameters: Parameters
    numbers: list[int]
    groups: list[int]
    state: list[list[Tensor]]
    sides: tuple[list[Tensor], list[Tensor], list[int]]
    exact: bool
    bounds: list[float]
    places: list[int]
    sharding: Any = None
    first: tuple[bool, ...] = ()
    _rest: tuple[Any, ...] = field(default=(), init=False)
    _has_scalars: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._has_scalars = not all(map(Tensor.dim, self.parameters))

    def follow(self, groups: list[Group]) -> bool:
        """Take the options as they are now; False where one call no longer does for all."""
        own = [groups[g] for g in dict.fromkeys(self.groups)]
        shared = [shared_options(group, self.kind.options) for group in own]
        pace = self.kind.pace(own[0], self.state)
        if pace is None or shared.count(shared[0]) < len(shared):
            return False
        lr, rate = [group["lr"] for group in groups], None
        if isinstance(own[0]["lr"], Tensor):
            lr, rate = [1.0] * len(groups), own[0]["lr"]
        decay = [group["weight_decay"] for group in groups]
        rates, decays = [float(lr[g]) for g in self.groups], [float(decay[g]) for g in self.groups]
        self._rest = *self.sides, self.exact, rates, decays, self.bounds, *pace, *self.first, rate
        return True

    def __call__(self, grads: Grads, scaling: Scaling) -> None:
        """Step the parameters by these gradients, which are those of all of the optimizer's."""
        lists: list[Any] = [self.parameters, [grads[n] for n in self.numbers], *self.state]
        if self.sharding is not None:
            lists = [[*map(local, tensors)] for tensors in lists]
        elif self._has_scalars:
            lists = [rows(tensors) for tensors in lists]
        places = [] if scaling.draw is None else self.places
        backends.select(self.kind.op, lists[0][0])(*lists, *self._rest, *scaling, places)


# (optimizer, by group the numbers of its parameters that have a gradient, what may not move,
# found_inf, dtype of new state of parameters of half precision) -> calls
Make = Callable[
    [Any, list[list[int]], ProtectedElements, Tensor | None, Any],
    list[Call],
]


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
        self._held: list[Any] = []
        self._layout: tuple[list[int], list[int]] = [], []
        self._options: list[Any] = []
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
        groups = optimizer.param_groups
        held, options = _held(optimizer, parameters), []
        for group in groups:
            options += group.values()
        left_out = [n for n, grad in enumerate(grads) if grad is None]
        layout = left_out, [len(group["params"]) for group in groups]
        if layout == self._layout and _are_same(held, self._held):
            if _are_same(options, self._options):
                return self._calls
            if all(call.follow(groups) for call in self._calls):
                self._options = options
                return self._calls
        self._calls = self._made(optimizer, grads, found_inf)
        # Calls that make state are of this step alone, and so are those that leave some out.
        stepped = sum(len(call.parameters) for call in self._calls)
        is_whole = stepped == sum(grad is not None for grad in grads)
        is_kept = is_whole and _are_same(held, _held(optimizer, parameters))
        self._held, self._layout, self._options = held if is_kept else [], layout, options
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
            call.follow(optimizer.param_groups)
        return calls


def parameters_of(optimizer: Any) -> Parameters:
    """Of all groups."""
    found: Parameters = []
    for group in optimizer.param_groups:
        found += group["params"]
    return found


def grads_of(parameters: Parameters) -> Grads:
    """Of each its gradient, None where it has none."""
    return [*map(_GRAD, parameters)]


def shared_options(group: Group, names: tuple[str, ...]) -> tuple[Any, ...]:
    """What a group's parameters have to share with others' to go into one call with them."""
    lr = group["lr"]
    rate = id(lr) if isinstance(lr, Tensor) else None
    return (*[group.get(name, False) for name in names], rate)


def _held(optimizer: Any, parameters: Parameters) -> list[Any]:
    """Parameters and state, by which tensors a step's calls are known."""
    state = optimizer.state
    found = [*parameters, *state]
    for entries in state.values():
        found += entries.values()
    return found


def _are_same(now: list[Any], before: list[Any]) -> bool:
    """By identity; what was there before is held, so that nothing else can be in its place."""
    return len(now) == len(before) and all(map(is_, now, before))


def rows(tensors: list[Any]) -> list[Any]:
    """The same where a scalar is a row of one, as the op takes it."""
    return [t if t.dim() else t.view(1) for t in tensors]
