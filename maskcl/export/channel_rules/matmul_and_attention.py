"""Rules for products of matrices and for attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from maskcl.export.flow import Flow
from maskcl.export.step import Step
from maskcl.nn.following.provenance import aligned

if TYPE_CHECKING:
    from maskcl.export.build import Builder


def matrix_product(step: Step) -> Flow | None:
    """``left @ right``."""
    left, right = step.argument(0, "input"), step.argument(1, "other", step.kwargs.get("mat2"))
    return _product(step, left, right)


def _product(step: Step, left: Any, right: Any) -> Flow | None:
    """left [.., M, K] times right [.., K, N]: a summed channel is left out where a factor is 0."""
    if not isinstance(left, Flow) or not isinstance(right, Flow) or step.shape is None:
        return None
    if min(len(left.shape), len(right.shape)) < 2:
        return None
    _summed(step, left, -1, right, -2)
    rank = len(step.shape)
    axes = step.joined_axes([left, right], range(rank - 2))
    axes[-2:] = [left.axes[-2], right.axes[-1]]
    rows_zero = aligned(left.zero, rank).all(-1, keepdim=True)
    columns_zero = aligned(right.zero, rank).all(-2, keepdim=True)
    return Flow(step.shape, tuple(axes), rows_zero | columns_zero)


def _summed(step: Step, left: Flow, one: int, right: Flow, other: int) -> None:
    step.labels.same(left.axes[one], right.axes[other])
    zero = left.zero_along(one) | right.zero_along(other)
    for axis in (left.axes[one], right.axes[other]):
        step.labels.pin(None if axis is None else axis[~zero])


def attention(step: Step) -> Flow | None:
    """scaled_dot_product_attention: the scale stays that of the full width."""
    query, key, value = (step.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    known = {"query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"}
    if step.shape is None or not set(step.kwargs) <= known:
        return None
    if not all(isinstance(x, Flow) and len(x.shape) == len(step.shape) for x in step.flows[:3]):
        return None
    rank = len(step.shape)
    # A softmax runs over all positions, and a mask says which is which.
    masks = step.flows[3:]
    for flow in (query, key, value):
        step.pin(flow, [rank - 2])
    for mask in masks:
        step.pin(mask, range(len(mask.shape))[-2:])
    _summed(step, query, -1, key, -1)
    axes = step.joined_axes([query, key, value, *masks], range(rank - 2))
    axes[-2:] = [query.axes[-2], value.axes[-1]]
    if step.argument(6, "scale") is None and query.axes[-1] is not None:
        step.plan.edits[step.node] = _with_scale(step, query.shape[-1] ** -0.5)
    return Flow(step.shape, tuple(axes), aligned(value.zero, rank).all(-2, keepdim=True))


def _with_scale(step: Step, scale: float) -> Callable[[Builder], Any]:
    node = step.node
    kwargs = {**node.kwargs, "scale": scale}
    return lambda builder: builder.create(node, node.op, node.target, node.args[:6], kwargs)
