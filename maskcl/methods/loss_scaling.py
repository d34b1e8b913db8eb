"""Gradients of a loss that a GradScaler scaled: what a method adds to them is scaled likewise.

float16 training multiplies the loss by 2^16 or so before backward and divides the gradients before
the optimizer's step. Between the two a penalty's gradient, or a bound of their norm, is off by that
factor, without a word.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from itertools import chain
from sys import getrefcount
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.amp.grad_scaler import OptState
from torch.nn.utils import get_total_norm

from maskcl.shard_sums import total_norm
from maskcl.shards import are_plain, kind_of, local

NOT_SCALED = GradScaler("cpu", enabled=False)
"""Says that a loss is not scaled, whatever scalers there are."""


def factor(method: object, scaler: GradScaler | None, watch: ScalerWatch) -> Tensor | float:
    """What the gradients are multiplied by now: 1.0, or the scaler's 0-d scale.

    Args:
        method: whose ``after_backward`` asks.
        scaler: that scaled the loss; None for none.
        watch: of the task, which knows the scalers of this process.

    Raises:
        RuntimeError: no scaler was given, and one is in use.
    """
    if scaler is not None:
        scale = scaler._scale if scaler.is_enabled() else None
        return 1.0 if scale is None or _is_unscaled(scaler) else scale
    if watch.in_use():
        gc.collect()  # one that nobody holds any more may wait in a circle of references
    if watch.in_use():
        caller = f"{type(method).__name__}.after_backward"
        raise RuntimeError(
            f"{caller}: a GradScaler scales the loss, and what the method adds to the gradients"
            f" would be divided by its scale: call {caller}(net, state, scaler=scaler), or"
            " scaler.unscale_(optimizer) before it (scaler=torch.amp.GradScaler(enabled=False) says"
            " that this loss is not scaled)"
        )
    return 1.0


class ScalerWatch:
    """The GradScalers of this process, found without being told of: one that is in use is alive.

    Looking for them takes milliseconds. Each one holds a reference to its class, so that a step
    need only compare the number of these to know that there is none that it has not seen.
    """

    def __init__(self) -> None:
        self._references = -1
        self._found: list[weakref.ref[GradScaler]] = []
        self._classes: list[type[GradScaler]] = []

    def __reduce__(self) -> tuple[type[ScalerWatch], tuple[()]]:
        return ScalerWatch, ()  # a copy is of another process, or looks for itself

    def in_use(self) -> bool:
        """Whether one of them has scaled a loss whose gradients are not unscaled."""
        # A plain loop, in every step: generators take longer. Mostly there is nothing in it.
        is_known = sum(map(getrefcount, self._classes)) == self._references
        alive: list[GradScaler] = []
        for found in self._found:
            if (scaler := found()) is None:
                is_known = False  # one made since may have its place in the count
            else:
                alive.append(scaler)
        if not is_known:
            alive = self._look()
        return bool(alive) and any(map(_scales, alive))

    def _look(self) -> list[GradScaler]:
        self._classes = [*_classes(GradScaler)]
        scalers = chain.from_iterable(map(_instances, self._classes))
        alive = [s for s in scalers if s is not NOT_SCALED]
        self._found = [*map(weakref.ref, alive)]
        self._references = sum(map(getrefcount, self._classes))
        return alive


def _classes(kind: type[GradScaler]) -> Iterator[type[GradScaler]]:
    """A class and all that are made from it."""
    yield kind
    for child in kind.__subclasses__():
        yield from _classes(child)


def _instances(kind: type[GradScaler]) -> Iterator[GradScaler]:
    return (found for found in gc.get_referrers(kind) if type(found) is kind)


def _scales(scaler: GradScaler) -> bool:
    """Whether gradients are still multiplied by its scale."""
    return scaler.is_enabled() and scaler._scale is not None and not _is_unscaled(scaler)


def _is_unscaled(scaler: GradScaler) -> bool:
    """Whether ``unscale_`` has been called since the last update."""
    states = scaler._per_optimizer_states.values()
    return any(state["stage"] is OptState.UNSCALED for state in states)


def clip_norm(parameters: list[torch.nn.Parameter], bound: float, scale: Tensor | float) -> None:
    """`clip_grad_norm_` at ``bound`` times the gradients' factor; some may be sharded."""
    if are_plain(parameters):
        torch.nn.utils.clip_grad_norm_(parameters, bound * scale)  # type: ignore[arg-type]
        return
    kinds: dict[Any, list[Tensor]] = {}
    for grad in (p.grad for p in parameters if p.grad is not None):
        kinds.setdefault(kind_of(grad), []).append(grad)
    parts = [(get_total_norm([*map(local, grads)]), grads[0]) for grads in kinds.values()]
    if parts:
        factor = (bound * scale / (total_norm(parts) + 1e-6)).clamp(max=1.0)
        for grad in chain.from_iterable(kinds.values()):
            local(grad).mul_(factor.to(grad.device))
