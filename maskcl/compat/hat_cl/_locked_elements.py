"""Elements of parameters that locked tasks use, and the end of what would move them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from maskcl.ops import clamp_grads_


@dataclass(frozen=True)
class Sides:
    """Tasks that use each end of a parameter, as `maskcl.ops.clamp_grads_` takes them."""

    out: Tensor
    into: Tensor | None
    groups: int = 1


def columns(sides: list[Sides]) -> tuple[list[Any], list[Any], list[int]]:
    """Out sides, in sides and groups, as the ops take them."""
    return [s.out for s in sides], [s.into for s in sides], [s.groups for s in sides]


def alike(rows: list[tuple[Any, Sides]]) -> list[list[tuple[Any, Sides]]]:
    """Rows by device and dtype, as the ops take them."""
    found: dict[Any, list[tuple[Any, Sides]]] = {}
    for tensor, sides in rows:
        found.setdefault((tensor.device, tensor.dtype), []).append((tensor, sides))
    return list(found.values())


@torch.no_grad()
def clear_grads(rows: list[tuple[nn.Parameter, Sides]]) -> None:
    """Make the gradients of these elements 0."""
    for batch in alike([(p.grad, sides) for p, sides in rows if p.grad is not None]):
        out, into, groups = columns([sides for _, sides in batch])
        clamp_grads_([grad for grad, _ in batch], out, into, groups=groups)


def clear_state(optimizer: Optimizer, rows: list[tuple[nn.Parameter, Sides]]) -> None:
    """Make what the optimizer keeps of these elements 0, such as momentum."""
    states = [
        (value, sides)
        for parameter, sides in rows
        for value in optimizer.state.get(parameter, {}).values()
        if isinstance(value, Tensor)
        and value.shape == parameter.shape
        and value.device == parameter.device
        and value.is_floating_point()
    ]
    for batch in alike(states):
        out, into, groups = columns([sides for _, sides in batch])
        clamp_grads_([value for value, _ in batch], out, into, groups=groups)
