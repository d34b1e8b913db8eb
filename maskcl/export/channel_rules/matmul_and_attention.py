"""Products of matrices, and attention."""

from __future__ import annotations

from typing import Any

from maskcl.export.channel_flow import Flow
from maskcl.export.traced_node import Edit, TracedNode
from maskcl.nn.following.provenance import aligned


def matrix_product(traced: TracedNode) -> Flow | None:
    """``left @ right``."""
    right = traced.argument(1, "other", traced.kwargs.get("mat2"))
    return _product(traced, traced.argument(0, "input"), right)


def _product(traced: TracedNode, left: Any, right: Any) -> Flow | None:
    """left [.., M, K] times right [.., K, N]: a summed channel is left out where a factor is 0."""
    if not isinstance(left, Flow) or not isinstance(right, Flow) or traced.shape is None:
        return None
    if min(len(left.shape), len(right.shape)) < 2:
        return None
    _summed(traced, left, -1, right, -2)
    rank = len(traced.shape)
    axes = traced.joined_axes([left, right], range(rank - 2))
    axes[-2:] = [left.axes[-2], right.axes[-1]]
    rows_zero = aligned(left.zero, rank).all(-1, keepdim=True)
    columns_zero = aligned(right.zero, rank).all(-2, keepdim=True)
    return Flow(traced.shape, tuple(axes), rows_zero | columns_zero)


def _summed(traced: TracedNode, left: Flow, one: int, right: Flow, other: int) -> None:
    traced.labels.same(left.axes[one], right.axes[other])
    zero = left.zero_along(one) | right.zero_along(other)
    for axis in (left.axes[one], right.axes[other]):
        traced.labels.pin(None if axis is None else axis[~zero])


def attention(traced: TracedNode) -> Flow | None:
    """scaled_dot_product_attention: the scale stays that of the full width."""
    query, key, value = (traced.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    known = {"query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"}
    if traced.shape is None or not set(traced.kwargs) <= known:
        return None
    if not all(isinstance(x, Flow) and len(x.shape) == len(traced.shape) for x in traced.flows[:3]):
        return None
    rank = len(traced.shape)
    # A softmax runs over all positions, and a mask says which is which.
    masks = traced.flows[3:]
    for flow in (query, key, value):
        traced.pin(flow, [rank - 2])
    for mask in masks:
        traced.pin(mask, range(len(mask.shape))[-2:])
    _summed(traced, query, -1, key, -1)
    axes = traced.joined_axes([query, key, value, *masks], range(rank - 2))
    axes[-2:] = [query.axes[-2], value.axes[-1]]
    if traced.argument(6, "scale") is None and query.axes[-1] is not None:
        traced.plan.edits[traced.node] = _with_scale(traced, query.shape[-1] ** -0.5)
    return Flow(traced.shape, tuple(axes), aligned(value.zero, rank).all(-2, keepdim=True))


def _with_scale(traced: TracedNode, scale: float) -> Edit:
    node = traced.node
    kwargs = {**node.kwargs, "scale": scale}
    return lambda new: new.create(node, node.op, node.target, node.args[:6], kwargs)
