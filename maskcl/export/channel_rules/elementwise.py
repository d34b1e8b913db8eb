"""Rules for operations without parameters: by element, pooling, reductions, concatenation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskcl.export.flow import Flow
from maskcl.export.products import attention, matrix_product
from maskcl.export.step import Step, nowhere, zeros_of
from maskcl.nn.following import operations as ops
from maskcl.nn.following.provenance import aligned

_SOFTMAX = ("softmax", "log_softmax", "softmin")
_MIXING = (*_SOFTMAX, "layer_norm", "group_norm", "rms_norm", "normalize", "instance_norm")


def operation_flow(step: Step) -> Any:
    """Flow of a node that calls a function or a method; None where no rule knows it."""
    name = step.name
    if name in _SOFTMAX:
        dim = step.argument(1, "dim")
        return softmaxed(step, dim) if isinstance(dim, int) else None
    rule = _RULES.get(name)
    if rule is not None:
        return rule(step)
    if name in ops.REDUCTIONS:
        return _reduced(step)
    if name == "pad" or name.startswith(ops.POOLS):
        return None if name == "instance_norm" else _padded(step) if name == "pad" else pooled(step)
    return _by_element(step)


def by_element(step: Step, keeps_zero: bool) -> Flow | None:
    """The result of an operation on one tensor, element by element."""
    (flow,) = step.flows
    if flow.shape != step.shape:
        return None
    return Flow(flow.shape, flow.axes, flow.zero if keeps_zero else nowhere(len(flow.shape)))


def pooled(step: Step) -> Flow | None:
    """Pooling, resizing or padding of all dimensions behind the channels'; 0 stays 0."""
    flow = step.flows[0]
    if step.shape is None or len(step.shape) != len(flow.shape) or len(flow.shape) < 3:
        return None
    rank = len(flow.shape)
    if flow.shape[:2] != step.shape[:2]:
        return None
    step.pin(flow, range(2, rank))
    for other in step.flows[1:]:
        step.pin(other)
    zero = aligned(flow.zero, rank).flatten(2).all(2)
    return Flow(
        step.shape, (*flow.axes[:2], *[None] * (rank - 2)), zero[(...,) + (None,) * (rank - 2)]
    )


def rows(step: Step) -> Flow | None:
    """Rows picked, added up or averaged: each channel stays by itself, and 0 stays 0."""
    flow, *others = step.flows
    size = step.shape
    if size is None or len(size) != len(flow.shape) or size[1:] != flow.shape[1:]:
        return None
    for other in others:
        step.pin(other)
    step.pin(flow, [0])
    zero = aligned(flow.zero, len(size)).all(0, keepdim=True)
    return Flow(size, (None, *flow.axes[1:]), zero)


def softmaxed(step: Step, dim: int) -> Flow | None:
    """All channels along ``dim`` count, also those that are 0."""
    (flow,) = step.flows
    step.pin(flow, [dim])
    return by_element(step, keeps_zero=False)


def _by_element(step: Step) -> Flow | None:
    name, flows = step.name, step.flows
    if step.shape is None or any(len(flow.shape) > len(step.shape) for flow in flows):
        return None
    rank = len(step.shape)
    if name in ops.SUMS:
        zero = zeros_of(flows, rank, torch.logical_and)
        if _shift(step):
            zero = nowhere(rank)
        return step.elementwise(flows, zero)
    if name in ops.PRODUCTS:
        return step.elementwise(flows, zeros_of(flows, rank, torch.logical_or))
    if name in ops.QUOTIENTS or name == "pow":
        first, second = step.argument(0, "input"), step.argument(1, "exponent")
        keeps = isinstance(first, Flow) and (
            name != "pow" or (isinstance(second, (int, float)) and second > 0)
        )
        return step.elementwise(flows, aligned(first.zero, rank) if keeps else nowhere(rank))
    if len(flows) != 1 or name in _MIXING:
        return None
    if name in ops.CLAMPS:
        low = step.argument(1, "min", step.kwargs.get("min_val"))
        high = step.argument(2, "max", step.kwargs.get("max_val"))
        numbers = all(isinstance(x, (int, float, type(None))) for x in (low, high))
        # A hardtanh without bounds has its own, on both sides of 0.
        return by_element(step, numbers and (low or 0) <= 0 <= (high or 0)) if numbers else None
    if name in ops.KEEP_ZERO or name in ops.CHANGE_ZERO:
        return by_element(step, name in ops.KEEP_ZERO)
    return None


def _shift(step: Step) -> bool:
    """Whether a sum or maximum has a number in it that could move a 0."""
    numbers = [*step.args, *step.kwargs.values()]
    return any(isinstance(x, (int, float)) and x != 0 for x in numbers)


def _as_other(step: Step) -> Flow | None:
    """``x.expand_as(y)`` and the like."""
    first, other = step.flows
    if step.name == "type_as":
        step.pin(other)
        return Flow(first.shape, first.axes, first.zero)
    if step.shape is None or other.shape != step.shape:
        return None
    if step.name != "expand_as" and first.shape != other.shape:
        return None
    return step.elementwise([first, other], aligned(first.zero, len(step.shape)))


def _joined(step: Step) -> Flow | None:
    """Concatenation: channels one behind the other along one dimension, the same along others."""
    tensors = step.argument(0, "tensors")
    dim = step.argument(1, "dim", step.kwargs.get("axis", 0))
    size = step.shape
    if size is None or not isinstance(dim, int) or len(step.flows) != len(tensors):
        return None
    if any(len(flow.shape) != len(size) for flow in step.flows):
        return None
    rank, dim = len(size), dim % len(size)
    axes = step.joined_axes(step.flows, [d for d in range(rank) if d != dim])
    if any(flow.axes[dim] is not None for flow in step.flows):
        parts = [flow.axes[dim] for flow in step.flows]
        blank = [torch.zeros(flow.shape[dim], dtype=torch.int64) for flow in step.flows]
        axes[dim] = torch.cat([b if a is None else a for a, b in zip(parts, blank, strict=True)])
    return Flow(size, tuple(axes), _joined_zeros(step.flows, dim))


def _joined_zeros(flows: list[Flow], dim: int) -> Tensor:
    zeros = [aligned(flow.zero, len(flow.shape)) for flow in flows]
    sizes = [max(zero.shape[d] for zero in zeros) for d in range(zeros[0].dim())]
    parts = []
    for flow, zero in zip(flows, zeros, strict=True):
        sizes[dim] = flow.shape[dim]
        parts.append(zero.expand(sizes))
    return torch.cat(parts, dim)


def _reduced(step: Step) -> Flow | None:
    """Mean, sum or largest: what is 0 can be left out of a sum alone, which no count divides."""
    if len(step.flows) != 1 or step.shape is None:
        return None
    (flow,) = step.flows
    rank = len(flow.shape)
    dims = step.argument(1, "dim", step.kwargs.get("axis"))
    dims = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    dims = sorted({int(dim) % rank for dim in dims})
    keep = len(step.shape) == rank
    for dim in dims:
        axis = flow.axes[dim]
        if axis is None:
            continue
        step.labels.pin(axis[~flow.zero_along(dim)] if step.name == "sum" else axis)
    rest = [dim for dim in range(rank) if keep or dim not in dims]
    axes = tuple(None if dim in dims else flow.axes[dim] for dim in rest)
    zero = aligned(flow.zero, rank)
    for dim in dims:
        zero = zero.all(dim, keepdim=True)
    return Flow(step.shape, axes, zero if keep else zero.squeeze(tuple(dims)))


def _padded(step: Step) -> Flow | None:
    (flow,) = step.flows
    pad, mode = step.argument(1, "pad"), step.argument(2, "mode", "constant")
    value = step.argument(3, "value")
    if step.shape is None or not isinstance(pad, (tuple, list)):
        return None
    rank, first = len(flow.shape), len(flow.shape) - len(pad) // 2
    step.pin(flow, range(first, rank))
    axes = tuple(flow.axes[dim] if dim < first else None for dim in range(rank))
    zero = aligned(flow.zero, rank)
    for dim in range(first, rank):
        zero = zero.all(dim, keepdim=True)
    if mode == "constant" and value not in (None, 0):
        zero = nowhere(rank)
    return Flow(step.shape, axes, zero)


def _batch_norm(step: Step) -> Flow | None:
    """The functional form, of a norm whose class is not torch's own."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    flow, *own = (step.argument(i, name) for i, name in enumerate(names))
    if own.pop() is not False or len(flow.shape) < 2 or flow.shape != step.shape:
        return None
    for vector in (v for v in own if isinstance(v, Flow)):
        step.labels.same(flow.axes[1], vector.axes[0]) if flow.axes[1] is not None else step.pin(
            vector
        )
    weight, bias = own[2:]
    zero = nowhere(len(flow.shape))
    if isinstance(weight, Flow) and isinstance(bias, Flow):
        closed = weight.zero_along(0) & bias.zero_along(0)
        zero = closed.view(1, -1, *[1] * (len(flow.shape) - 2))
    return Flow(flow.shape, flow.axes, zero)


_RULES: dict[str, Callable[[Step], Flow | None]] = {
    "expand_as": _as_other,
    "view_as": _as_other,
    "reshape_as": _as_other,
    "type_as": _as_other,
    "cat": _joined,
    "concat": _joined,
    "concatenate": _joined,
    "matmul": matrix_product,
    "bmm": matrix_product,
    "scaled_dot_product_attention": attention,
    "batch_norm": _batch_norm,
}
