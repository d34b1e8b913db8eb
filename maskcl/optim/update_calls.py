"""From an optimizer's groups and state to calls of the op ``update``: one for all groups alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskcl import backends
from maskcl.optim.protected_elements import ProtectedElements

Parameters = list[nn.Parameter]


class Scaling(NamedTuple):
    """What all gradients of a step are divided by, and what bounds them.

    Attributes:
        scale: 0-d, of the loss; None for 1.
        found_inf: 0-d, not 0 where nothing is to be written; None for never.
        norm: 0-d, of the unscaled gradients; None for no bound.
        max_norm: the bound.
    """

    scale: Tensor | None
    found_inf: Tensor | None
    norm: Tensor | None = None
    max_norm: float = 0.0


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


class Calls:
    """The calls of a step, kept until a group's options or parameters change."""

    def __init__(self) -> None:
        self._seen: list[Any] = []
        self._calls: list[Alike] = []

    def of(self, optimizer: Any, found: list[Parameters], options: tuple[str, ...]) -> list[Alike]:
        """Parameters of all groups, together where ``options`` and what a call shares agree.

        Args:
            optimizer: with the groups.
            found: of each group, the parameters that have a gradient.
            options: names of what one call has one value of.
        """
        seen: list[Any] = []
        for group, parameters in zip(optimizer.param_groups, found, strict=True):
            lr = group["lr"]
            seen += [id(lr) if isinstance(lr, Tensor) else lr, group["weight_decay"]]
            seen += [group.get(name, False) for name in options]
            seen += map(id, parameters)
        if seen != self._seen:
            self._seen, self._calls = seen, _alike(optimizer, found, options)
        return self._calls


def adam_update(
    optimizer: Any,
    found: list[Parameters],
    elements: ProtectedElements,
    scaling: Scaling,
    calls: Calls,
    state_dtype: torch.dtype | None,
) -> None:
    """A step of ``torch.optim.Adam`` or ``AdamW``.

    Args:
        optimizer: with the groups and the state.
        found: of each group, the parameters that have a gradient.
        elements: what may not move.
        scaling: of the gradients.
        calls: of the optimizer's steps.
        state_dtype: of new moments of parameters of half precision, None for theirs.
    """
    state = optimizer.state
    options = ("betas", "eps", "decoupled_weight_decay", "maximize", "capturable", "fused")
    for some in calls.of(optimizer, found, options):
        betas, eps, decoupled, maximize, *kinds = some.options
        known = [state[p] for p in some.parameters]
        if not all(known):
            _begin_moments(state, some.parameters, any(kinds), state_dtype)
        outs, ins, groups, bounds = elements.sides(some.parameters)
        backends.select("adam_update_", some.parameters[0])(
            rows(some.parameters),
            rows([p.grad for p in some.parameters]),
            rows([s["exp_avg"] for s in known]),
            rows([s["exp_avg_sq"] for s in known]),
            [s["step"] for s in known],
            outs,
            ins,
            groups,
            elements.exact,
            some.lr,
            some.weight_decay,
            bounds,
            *betas,
            eps,
            decoupled,
            maximize,
            some.rate,
            *scaling,
        )


def _begin_moments(
    state: Any, parameters: Parameters, on_device: bool, state_dtype: torch.dtype | None
) -> None:
    """State as torch's own step would make it, where there is none yet."""
    for p in parameters:
        if not state[p]:
            state[p]["step"] = torch.zeros((), device=p.device if on_device else "cpu")
            state[p]["exp_avg"] = torch.zeros_like(p, dtype=_dtype(p, state_dtype))
            state[p]["exp_avg_sq"] = torch.zeros_like(p, dtype=_dtype(p, state_dtype))


def sgd_update(
    optimizer: Any,
    found: list[Parameters],
    elements: ProtectedElements,
    scaling: Scaling,
    calls: Calls,
    state_dtype: torch.dtype | None,
) -> None:
    """A step of ``torch.optim.SGD``; arguments as for `adam_update`."""
    state = optimizer.state
    options = ("momentum", "dampening", "nesterov", "maximize")
    for alike in calls.of(optimizer, found, options):
        momentum, dampening, nesterov, maximize = alike.options
        for some, first in _by_momentum(state, alike) if momentum else [(alike, False)]:
            parameters = some.parameters
            if momentum and first:
                # Nothing would be written, and the next step take what the memory held before. The
                # one wait for the device that a scaler's run of steps has.
                if scaling.found_inf is not None and bool(scaling.found_inf):
                    continue
                for p in parameters:
                    state[p]["momentum_buffer"] = torch.empty_like(p, dtype=_dtype(p, state_dtype))
            momenta = [state[p]["momentum_buffer"] for p in parameters] if momentum else []
            outs, ins, groups, bounds = elements.sides(parameters)
            backends.select("sgd_update_", parameters[0])(
                rows(parameters),
                rows([p.grad for p in parameters]),
                rows(momenta),
                outs,
                ins,
                groups,
                elements.exact,
                some.lr,
                some.weight_decay,
                bounds,
                momentum,
                dampening,
                nesterov,
                maximize,
                first,
                some.rate,
                *scaling,
            )


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
    """By device and by whether they are float64, which go into calls of their own."""
    kinds: dict[Any, Parameters] = {}
    for p in parameters:
        kinds.setdefault((p.device, p.dtype is torch.float64), []).append(p)
    return list(kinds.items())


def _dtype(parameter: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    is_half = parameter.dtype in (torch.bfloat16, torch.float16)
    return wanted if wanted is not None and is_half else parameter.dtype
