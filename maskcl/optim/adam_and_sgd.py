"""The calls of the op ``update`` that a step of ``torch.optim``'s SGD, Adam and AdamW is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.optim.protected_elements import ProtectedElements
from maskcl.optim.update_calls import (
    Call,
    Group,
    Kind,
    Parameters,
    parameters_of,
    shared_options,
)
from maskcl.shards import first_element, kind_of

_MOMENTS = "exp_avg", "exp_avg_sq", "step"
# Parameters of one call: their numbers among the optimizer's, and those of their groups.
Members = list[tuple[int, int]]


def _adam_pace(group: Group, state: list[list[Tensor]]) -> tuple[Any, ...]:
    decoupled = group.get("decoupled_weight_decay", False)
    return *group["betas"], group["eps"], bool(decoupled), bool(group.get("maximize"))


def _sgd_pace(group: Group, state: list[list[Tensor]]) -> tuple[Any, ...] | None:
    momentum = group["momentum"]
    if bool(momentum) != bool(state[0]):
        return None
    return momentum, group["dampening"], bool(group["nesterov"]), bool(group.get("maximize"))


_ADAM = Kind(
    "adam_update_",
    _MOMENTS,
    ("betas", "eps", "decoupled_weight_decay", "maximize", "capturable", "fused"),
    _adam_pace,
)
_SGD = Kind(
    "sgd_update_",
    ("momentum_buffer",),
    ("momentum", "dampening", "nesterov", "maximize"),
    _sgd_pace,
)


def adam_calls(
    optimizer: Any,
    found: list[list[int]],
    elements: ProtectedElements,
    found_inf: Tensor | None,
    state_dtype: torch.dtype | None,
) -> list[Call]:
    """A step of ``torch.optim.Adam`` or ``AdamW``; moments that are not there yet are made.

    Args:
        optimizer: with the groups and the state.
        found: of each group, the numbers of its parameters that have a gradient.
        elements: what may not move.
        found_inf: 0-d, not 0 where nothing is to be written.
        state_dtype: of new state of parameters of half precision, None for theirs.
    """
    every, state = parameters_of(optimizer), optimizer.state
    calls = []
    for members in _alike(optimizer, every, found, _ADAM.options):
        group = optimizer.param_groups[members[0][1]]
        on_device = bool(group.get("capturable") or group.get("fused"))
        parameters = [every[n] for n, _ in members]
        _begin_moments(state, parameters, on_device, state_dtype)
        moments = [[state[p][name] for p in parameters] for name in _MOMENTS]
        calls.append(_call(_ADAM, members, parameters, moments, elements))
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
    found: list[list[int]],
    elements: ProtectedElements,
    found_inf: Tensor | None,
    state_dtype: torch.dtype | None,
) -> list[Call]:
    """A step of ``torch.optim.SGD``; arguments as for `adam_calls`."""
    every, state = parameters_of(optimizer), optimizer.state
    calls = []
    for alike in _alike(optimizer, every, found, _SGD.options):
        momentum = optimizer.param_groups[alike[0][1]]["momentum"]
        for members, first in _by_momentum(every, state, alike) if momentum else [(alike, False)]:
            parameters = [every[n] for n, _ in members]
            if first:
                # Nothing would be written, and the next step take what the memory held before. The
                # one wait for the device that a scaler's run of steps has.
                if found_inf is not None and bool(found_inf):
                    continue
                momenta = [torch.zeros_like(p, dtype=_dtype(p, state_dtype)) for p in parameters]
            else:
                momenta = [state[p]["momentum_buffer"] for p in parameters] if momentum else []
            call = _call(_SGD, members, parameters, [momenta], elements, (first,))
            if first:
                call.begins = [state[p] for p in parameters]
            calls.append(call)
    return calls


def _by_momentum(every: Parameters, state: Any, members: Members) -> list[tuple[Members, bool]]:
    """Those without momentum yet, and those with, where there are some."""
    fresh: Members = []
    known: Members = []
    for n, group in members:
        is_fresh = state[every[n]].get("momentum_buffer") is None
        (fresh if is_fresh else known).append((n, group))
    return [(some, first) for some, first in ((fresh, True), (known, False)) if some]


def _call(
    kind: Kind,
    members: Members,
    parameters: Parameters,
    state: list[list[Tensor]],
    elements: ProtectedElements,
    first: tuple[bool, ...] = (),
) -> Call:
    numbers = [n for n, _ in members]
    outs, ins, convolved, bounds = elements.sides(parameters)
    places = [(n << 40) + first_element(p) for n, p in zip(numbers, parameters, strict=True)]
    return Call(
        kind=kind,
        parameters=parameters,
        numbers=numbers,
        groups=[group for _, group in members],
        state=state,
        sides=(outs, ins, convolved),
        exact=elements.exact,
        bounds=bounds,
        places=places,
        sharding=kind_of(parameters[0]),
        first=first,
    )


def _alike(
    optimizer: Any, every: Parameters, found: list[list[int]], options: tuple[str, ...]
) -> list[Members]:
    """Parameters that one call takes: of one device and sharding, and of alike groups."""
    calls: dict[Any, Members] = {}
    for number, (group, numbers) in enumerate(zip(optimizer.param_groups, found, strict=True)):
        shared = shared_options(group, options)
        for n in numbers:
            p = every[n]
            key = shared, p.device, p.dtype is torch.float64, kind_of(p)
            calls.setdefault(key, []).append((n, number))
    return list(calls.values())


def _dtype(parameter: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    is_half = parameter.dtype in (torch.bfloat16, torch.float16)
    return wanted if wanted is not None and is_half else parameter.dtype
