"""Operations by element: sums, products, activations, masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from maskcl.export.channel_flow import Flow, nowhere
from maskcl.export.kept_channels import along
from maskcl.export.traced_node import TracedNode
from maskcl.nn.following import operations as ops
from maskcl.nn.following.provenance import aligned
from maskcl.nn.hat.plain import UnitMask

# Among KEEP_ZERO and CHANGE_ZERO, but each element comes of several.
_MIXING = ("softmax", "log_softmax", "softmin", "layer_norm", "group_norm", "rms_norm", "normalize")


def by_element(traced: TracedNode, keeps_zero: bool) -> Flow | None:
    """The result of an operation on one tensor, element by element."""
    (flow,) = traced.flows
    if flow.shape != traced.shape:
        return None
    return Flow(flow.shape, flow.axes, flow.zero if keeps_zero else nowhere(len(flow.shape)))


def unit_mask(traced: TracedNode) -> Flow | None:
    """Flow behind a UnitMask; None where the module is another."""
    module, size = traced.module, traced.shape
    if not isinstance(module, UnitMask) or len(traced.flows) != 1 or size is None:
        return None
    (flow,) = traced.flows
    if flow.shape != size:
        return None
    rank = len(size)
    closed = along(module.mask.cpu() == 0, module.dim % rank, rank)
    return Flow(size, flow.axes, aligned(flow.zero, rank) | closed)


def elementwise(traced: TracedNode) -> Flow | None:
    """A function or method by element; None where the operation is not known to be one."""
    name, flows = traced.name, traced.flows
    if traced.shape is None or any(len(flow.shape) > len(traced.shape) for flow in flows):
        return None
    rank = len(traced.shape)
    if name in ops.SUMS:
        zero = _zeros_of(flows, rank, torch.logical_and)
        if _shift(traced):
            zero = nowhere(rank)
        return traced.elementwise(flows, zero)
    if name in ops.PRODUCTS:
        return traced.elementwise(flows, _zeros_of(flows, rank, torch.logical_or))
    if name in ops.QUOTIENTS or name == "pow":
        first, second = traced.argument(0, "input"), traced.argument(1, "exponent")
        keeps = isinstance(first, Flow) and (
            name != "pow" or (isinstance(second, (int, float)) and second > 0)
        )
        return traced.elementwise(flows, aligned(first.zero, rank) if keeps else nowhere(rank))
    if len(flows) != 1 or name in _MIXING:
        return None
    if name in ops.CLAMPS:
        low = traced.argument(1, "min", traced.kwargs.get("min_val"))
        high = traced.argument(2, "max", traced.kwargs.get("max_val"))
        numbers = all(isinstance(x, (int, float, type(None))) for x in (low, high))
        # A hardtanh without bounds has its own, on both sides of 0.
        return by_element(traced, numbers and (low or 0) <= 0 <= (high or 0)) if numbers else None
    if name in ops.KEEP_ZERO or name in ops.CHANGE_ZERO:
        return by_element(traced, name in ops.KEEP_ZERO)
    return None


def as_other(traced: TracedNode) -> Flow | None:
    """``x.expand_as(y)`` and the like."""
    first, other = traced.flows
    if traced.name == "type_as":
        traced.pin(other)
        return Flow(first.shape, first.axes, first.zero)
    if traced.shape is None or other.shape != traced.shape:
        return None
    if traced.name != "expand_as" and first.shape != other.shape:
        return None
    return traced.elementwise([first, other], aligned(first.zero, len(traced.shape)))


def _zeros_of(flows: Sequence[Flow], rank: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Which elements are 0 where that follows from all the flows' by ``join``."""
    zero = aligned(flows[0].zero, rank)
    for flow in flows[1:]:
        zero = join(zero, aligned(flow.zero, rank))
    return zero


def _shift(traced: TracedNode) -> bool:
    """Whether a sum or maximum has a number in it that could move a 0."""
    numbers = [*traced.args, *traced.kwargs.values()]
    return any(isinstance(x, (int, float)) and x != 0 for x in numbers)
