"""Pooling, resizing, padding; means, sums and maxima along dimensions."""

from __future__ import annotations

from maskcl.export.channel_flow import Flow, nowhere
from maskcl.export.traced_node import TracedNode
from maskcl.nn.following.provenance import aligned


def pooled(traced: TracedNode) -> Flow | None:
    """Pooling, resizing or padding of all dimensions behind the channels'; 0 stays 0."""
    flow = traced.flows[0]
    if traced.shape is None or len(traced.shape) != len(flow.shape) or len(flow.shape) < 3:
        return None
    rank = len(flow.shape)
    if flow.shape[:2] != traced.shape[:2]:
        return None
    traced.pin(flow, range(2, rank))
    for other in traced.flows[1:]:
        traced.pin(other)
    zero = aligned(flow.zero, rank).flatten(2).all(2)
    return Flow(
        traced.shape, (*flow.axes[:2], *[None] * (rank - 2)), zero[(...,) + (None,) * (rank - 2)]
    )


def padded(traced: TracedNode) -> Flow | None:
    """``F.pad``: 0 stays 0 unless it pads with another number."""
    (flow,) = traced.flows
    pad, mode = traced.argument(1, "pad"), traced.argument(2, "mode", "constant")
    value = traced.argument(3, "value")
    if traced.shape is None or not isinstance(pad, (tuple, list)):
        return None
    rank, first = len(flow.shape), len(flow.shape) - len(pad) // 2
    traced.pin(flow, range(first, rank))
    axes = tuple(flow.axes[dim] if dim < first else None for dim in range(rank))
    zero = aligned(flow.zero, rank)
    for dim in range(first, rank):
        zero = zero.all(dim, keepdim=True)
    if mode == "constant" and value not in (None, 0):
        zero = nowhere(rank)
    return Flow(traced.shape, axes, zero)


def reduced(traced: TracedNode) -> Flow | None:
    """Mean, sum or largest: what is 0 can be left out of a sum alone, which no count divides."""
    if len(traced.flows) != 1 or traced.shape is None:
        return None
    (flow,) = traced.flows
    rank = len(flow.shape)
    dims = traced.argument(1, "dim", traced.kwargs.get("axis"))
    dims = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    dims = sorted({int(dim) % rank for dim in dims})
    keep = len(traced.shape) == rank
    for dim in dims:
        axis = flow.axes[dim]
        if axis is None:
            continue
        traced.labels.pin(axis[~flow.zero_along(dim)] if traced.name == "sum" else axis)
    rest = [dim for dim in range(rank) if keep or dim not in dims]
    axes = tuple(None if dim in dims else flow.axes[dim] for dim in rest)
    zero = aligned(flow.zero, rank)
    for dim in dims:
        zero = zero.all(dim, keepdim=True)
    return Flow(traced.shape, axes, zero if keep else zero.squeeze(tuple(dims)))
