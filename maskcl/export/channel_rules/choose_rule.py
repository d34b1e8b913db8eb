"""Which rule a node falls under: modules by class, functions and methods by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from maskcl.export.channel_flow import Flow
from maskcl.export.channel_rules.concat import concatenated
from maskcl.export.channel_rules.elementwise import as_other, by_element, elementwise, unit_mask
from maskcl.export.channel_rules.graph_layers import message_passing, rows
from maskcl.export.channel_rules.linear_and_conv import linear_or_conv
from maskcl.export.channel_rules.matmul_and_attention import attention, matrix_product
from maskcl.export.channel_rules.norms_and_softmax import functional_batch_norm, norm, softmax
from maskcl.export.channel_rules.pooling_and_reductions import padded, pooled, reduced
from maskcl.export.channel_rules.reshape_and_slice import moved
from maskcl.export.traced_node import TracedNode
from maskcl.nn.following import operations as ops
from maskcl.nn.following.trees import leaves_of
from maskcl.nn.tasks.activations import keeps_zero
from maskcl.nn.tasks.graph_convolutions import is_channelwise

_SOFTMAXES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
_SPATIAL = ("upsample", "zeropad", "reflectionpad", "replicationpad", "circularpad", "constantpad")

_RULES: dict[str, Callable[[TracedNode], Flow | None]] = {
    **dict.fromkeys(("cat", "concat", "concatenate"), concatenated),
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as"), as_other),
    **dict.fromkeys(("softmax", "log_softmax", "softmin"), softmax),
    **dict.fromkeys(("matmul", "bmm"), matrix_product),
    **dict.fromkeys(ops.REDUCTIONS, reduced),
    **dict.fromkeys(ops.READOUTS, rows),
    "scaled_dot_product_attention": attention,
    "batch_norm": functional_batch_norm,
    "pad": padded,
}


def module_flow(traced: TracedNode) -> Any:
    """What comes out of a node that calls a module; None where no rule knows it."""
    module = traced.module
    assert module is not None
    if not traced.flows or _has_hooks(module):
        return None
    if is_channelwise(module):
        return rows(traced)
    for rule in (linear_or_conv, message_passing, norm, unit_mask):
        found = rule(traced)
        if found is not None:
            return found
    if len(traced.flows) != 1:
        return None
    kind = type(module).__name__
    if isinstance(module, ops.MOVING_MODULES):
        return moved(traced)
    if isinstance(module, _SOFTMAXES):
        return softmax(traced)
    if kind.endswith(("Pool1d", "Pool2d", "Pool3d")) or kind.lower().startswith(_SPATIAL):
        zero_stays = not kind.startswith("ConstantPad")
        return pooled(traced) if zero_stays else None
    keeps = keeps_zero(module)
    return None if keeps is None else by_element(traced, keeps)


def operation_flow(traced: TracedNode) -> Any:
    """What comes out of a node that calls a function or a method; None where no rule knows it."""
    name = traced.name
    first = traced.args[0] if traced.args else None
    if name == "getitem" and isinstance(first, tuple):
        return first[traced.args[1]]
    if name in ops.PICKS and _picks_rows(traced):
        return rows(traced)
    rule = _RULES.get(name)
    if rule is not None:
        return rule(traced)
    if name in ops.MOVES or (name == "getattr" and traced.args[1] in ("T", "mT", "data")):
        return moved(traced) if len(list(leaves_of(first, Flow))) == len(traced.flows) else None
    # An instance norm is among POOLS, but has statistics and weights by channel.
    if name.startswith(ops.POOLS) and name != "instance_norm":
        return pooled(traced)
    return elementwise(traced)


def _picks_rows(traced: TracedNode) -> bool:
    index = traced.args[-1]
    return isinstance(index, Flow) and traced.args[1:-1] in ((), (0,))


def _has_hooks(module: nn.Module) -> bool:
    """Whether something may change what goes into a module or comes out of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
