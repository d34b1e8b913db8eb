"""From an optimizer's groups and state to calls of the op ``update``: one for all groups alike."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, repeat
from operator import attrgetter, is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskcl import backends
from maskcl.optim.protected_elements import ProtectedElements
from maskcl.shards import first_element, kind_of, local

Parameters = list[nn.Parameter]
_GRAD, _PARAMETERS = attrgetter("grad"), itemgetter("params")
_MOMENTS = "exp_avg", "exp_avg_sq", "step"


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


class Alike(NamedTuple):
    """Parameters that one call takes, with what may differ between them.

    Attributes:
        options: which all share, as asked for.
        parameters: of any groups.
        lr: of each; 1 where ``rate`` says.
        weight_decay: of each.
        rate: 0-d, multiplies lr; None for 1.
    """

    options: tuple[Any, ...]
    parameters: Parameters
    lr: list[float]
    weight_decay: list[float]
    rate: Tensor | None


class Call(NamedTuple):
    """One call of the op, all but the gradients and what scales them.

    Attributes:
        op: the op's name.
        parameters: that it steps.
        state: a list of each kind.
        sides: out_tasks, in_tasks and groups.
        rest: what comes behind.
        places: of each, the number of its first element among those of all of the optimizer's.
        kind: how the parameters are sharded, None where they are not.
    """

    op: str
    parameters: Parameters
    state: list[list[Tensor]]
    sides: tuple[list[Tensor], list[Tensor], list[int]]
    rest: tuple[Any, ...]
    places: list[int]
    kind: Any = None

    def __call__(self, scaling: Scaling) -> None:
        """Step them by their gradients."""
        params: Any = self.parameters
        lists = [params, [*map(_GRAD, params)], *self.state]
        if self.kind is not None:
            lists = [[*map(local, tensors)] for tensors in lists]
        elif not all(map(Tensor.dim, params)):
            lists = [rows(tensors) for tensors in lists]
        places = [] if scaling.draw is None else self.places
        backends.select(self.op, lists[0][0])(*lists, *self.sides, *self.rest, *scaling, places)


Make = Callable[[Any, list[Parameters], ProtectedElements, Tensor | None, Any], list[Call]]


class Calls:
    """The calls of a step, kept while the groups, their options and the state are what they were.

    Args:
        make: makes them: `adam_calls` or `sgd_calls`.
    """

    def __init__(self, make: Make) -> None:
        self._make = make
        self._seen: list[Any] = []
        self._sizes: list[int] = []
        self._calls: list[Call] = []

    def of(
        self,
        optimizer: Any,
        parameters: Parameters,
        elements: ProtectedElements,
        found_inf: Tensor | None,
        state_dtype: torch.dtype | None,
    ) -> list[Call]:
        """The calls that step all parameters that have a gradient.

        Args:
            optimizer: with the groups and the state.
            parameters: of all groups.
            elements: what may not move.
            found_inf: 0-d, not 0 where nothing is to be written.
            state_dtype: of new state of parameters of half precision, None for theirs.
        """
        groups = optimizer.param_groups
        seen, sizes = _what_is_there(optimizer, parameters), [len(g["params"]) for g in groups]
        if sizes != self._sizes or not _are_same(seen, self._seen):
            found = [[p for p in group["params"] if p.grad is not None] for group in groups]
            self._calls = self._make(optimizer, found, elements, found_inf, state_dtype)
            # Calls that make state are of this step alone, and so are those that leave some out.
            is_whole = sum(len(c.parameters) for c in self._calls) == sum(map(len, found))
            is_kept = is_whole and _are_same(seen, _what_is_there(optimizer, parameters))
            self._seen, self._sizes = seen if is_kept else [], sizes
        return self._calls


def parameters_of(optimizer: Any) -> Parameters:
    """Of all groups."""
    return list(chain.from_iterable(map(_PARAMETERS, optimizer.param_groups)))


def _what_is_there(optimizer: Any, parameters: Parameters) -> list[Any]:
    """All that a step's calls follow from; no line of Python runs for a parameter."""
    groups, state = optimizer.param_groups, optimizer.state
    options = chain.from_iterable(map(dict.items, groups))
    entries = chain.from_iterable(map(dict.items, state.values()))
    without = map(is_, map(_GRAD, parameters), repeat(None))
    named = chain.from_iterable(chain(options, entries))  # names and values
    return [*named, *parameters, *state, *without]


def _are_same(seen: list[Any], before: list[Any]) -> bool:
    """By identity; what was seen before is held, so that nothing else can be in its place."""
    return len(seen) == len(before) and all(map(is_, seen, before))


def are_dense(parameters: Parameters) -> bool:
    """Whether no gradient is sparse."""
    layouts = map(getattr, map(_GRAD, parameters), repeat("layout"), repeat(torch.strided))
    return all(map(is_, layouts, repeat(torch.strided)))


def adam_calls(
    optimizer: Any,
    found: list[Parameters],
    elements: ProtectedElements,
    found_inf: Tensor | None,
    state_dtype: torch.dtype | None,
) -> list[Call]:
    """A step of ``torch.optim.Adam`` or ``AdamW``; moments that are not there yet are made.

    Args:
        optimizer: with the groups and the state.
        found: of each group, the parameters that have a gradient.
        elements: what may not move.
        found_inf: as for `Calls.of`.
        state_dtype: as there.
    """
    state = optimizer.state
    options = ("betas", "eps", "decoupled_weight_decay", "maximize", "capturable", "fused")
    calls = []
    for some in _alike(optimizer, found, options):
        betas, eps, decoupled, maximize, *kinds = some.options
        _begin_moments(state, some.parameters, any(kinds), state_dtype)
        known = [state[p] for p in some.parameters]
        moments = [[s[name] for s in known] for name in _MOMENTS]
        pace = *betas, eps, decoupled, maximize
        calls.append(_call(optimizer, "adam_update_", some, moments, elements, pace))
    return calls


def _begin_moments(
    state: Any, parameters: Parameters, on_device: bool, state_dtype: torch.dtype | None
) -> None:
    """State as torch's own step would make it, where there is none yet."""
    for p in parameters:
        if not state[p]:
            state[p]["step"] = torch.zeros((), device=p.device if on_device else "cpu")
            state[p]["exp_avg"] = torch.zeros_like(p, dtype=_dtype(p, state_dtype))
            state[p]["exp_avg_sq"] = torch.zeros_like(p, dtype=_dtype(p, state_dtype))


def sgd_calls(
    optimizer: Any,
    found: list[Parameters],
    elements: ProtectedElements,
    found_inf: Tensor | None,
    state_dtype: torch.dtype | None,
) -> list[Call]:
    """A step of ``torch.optim.SGD``; arguments as for `adam_calls`."""
    state = optimizer.state
    options = ("momentum", "dampening", "nesterov", "maximize")
    calls = []
    for alike in _alike(optimizer, found, options):
        momentum, dampening, nesterov, maximize = alike.options
        for some, first in _by_momentum(state, alike) if momentum else [(alike, False)]:
            parameters = some.parameters
            if momentum and first:
                # Nothing would be written, and the next step take what the memory held before. The
                # one wait for the device that a scaler's run of steps has.
                if found_inf is not None and bool(found_inf):
                    continue
                for p in parameters:
                    state[p]["momentum_buffer"] = torch.zeros_like(p, dtype=_dtype(p, state_dtype))
            momenta = [state[p]["momentum_buffer"] for p in parameters] if momentum else []
            pace = momentum, dampening, nesterov, maximize, first
            calls.append(_call(optimizer, "sgd_update_", some, [momenta], elements, pace))
    return calls


def _call(
    optimizer: Any,
    op: str,
    some: Alike,
    state: list[list[Tensor]],
    elements: ProtectedElements,
    pace: tuple[Any, ...],
) -> Call:
    outs, ins, groups, bounds = elements.sides(some.parameters)
    rest = elements.exact, some.lr, some.weight_decay, bounds, *pace, some.rate
    kind = kind_of(some.parameters[0])
    numbers = {id(p): number for number, p in enumerate(parameters_of(optimizer))}
    places = [(numbers[id(p)] << 40) + first_element(p) for p in some.parameters]
    return Call(op, some.parameters, state, (outs, ins, groups), rest, places, kind)


def _by_momentum(state: Any, alike: Alike) -> list[tuple[Alike, bool]]:
    """Those without momentum yet, and those with."""
    fresh = [state[p].get("momentum_buffer") is None for p in alike.parameters]
    if not any(fresh):
        return [(alike, False)]
    if all(fresh):
        return [(alike, True)]
    parts = []
    for first in (True, False):
        at = [i for i, is_fresh in enumerate(fresh) if is_fresh is first]
        some = Alike(
            alike.options,
            [alike.parameters[i] for i in at],
            [alike.lr[i] for i in at],
            [alike.weight_decay[i] for i in at],
            alike.rate,
        )
        parts.append((some, first))
    return parts


def _alike(optimizer: Any, found: list[Parameters], options: tuple[str, ...]) -> list[Alike]:
    calls: dict[Any, Alike] = {}
    for group, parameters in zip(optimizer.param_groups, found, strict=True):
        lr = group["lr"]
        rate = lr if isinstance(lr, Tensor) else None
        values = tuple(group.get(name, False) for name in options)
        for kind, some in _by_kind(parameters):
            key = values, None if rate is None else id(rate), kind
            alike = calls.setdefault(key, Alike(values, [], [], [], rate))
            alike.parameters.extend(some)
            alike.lr.extend([float(lr) if rate is None else 1.0] * len(some))
            alike.weight_decay.extend([float(group["weight_decay"])] * len(some))
    return list(calls.values())


def rows(tensors: list[Any]) -> list[Any]:
    """The same where a scalar is a row of one, as the op takes it."""
    return [t if t.dim() else t.view(1) for t in tensors]


def _by_kind(parameters: Parameters) -> list[tuple[Any, Parameters]]:
    """By device, sharding and whether they are float64, which go into calls of their own."""
    kinds: dict[Any, Parameters] = {}
    for p in parameters:
        key = p.device, p.dtype is torch.float64, kind_of(p)
        kinds.setdefault(key, []).append(p)
    return list(kinds.items())


def _dtype(parameter: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    is_half = parameter.dtype in (torch.bfloat16, torch.float16)
    return wanted if wanted is not None and is_half else parameter.dtype
