"""Norms and softmax: which channels one counts, its groups, and where its output is 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskcl.export.channel_flow import Flow, nowhere
from maskcl.export.channel_rules.elementwise import by_element
from maskcl.export.kept_channels import EVERY, Labels
from maskcl.export.traced_node import TracedNode
from maskcl.nn.following.provenance import aligned


def norm(traced: TracedNode) -> Flow | None:
    """Flow behind a norm; None where the module is another."""
    module, size = traced.module, traced.shape
    if len(traced.flows) != 1 or size is None or traced.flows[0].shape != size:
        return None
    (flow,) = traced.flows
    rank = len(size)
    if isinstance(module, _BatchNorm):
        _channels(traced, flow.axes[1])
        return Flow(size, flow.axes, _silent(module, 1, rank))
    if isinstance(module, nn.GroupNorm):
        _channels(traced, flow.axes[1])
        if flow.axes[1] is not None:
            _whole_groups(traced.labels, flow.axes[1].view(module.num_groups, -1))
        traced.pin(flow, range(2, rank))
        return Flow(size, flow.axes, _silent(module, 1, rank))
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        # Means are over all channels: none can go.
        traced.pin(flow, range(rank - len(module.normalized_shape), rank))
        return Flow(size, flow.axes, _silent(module, None, rank))
    return None


def functional_batch_norm(traced: TracedNode) -> Flow | None:
    """``F.batch_norm``, of a norm whose class is not torch's own."""
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    flow, *own = (traced.argument(i, name) for i, name in enumerate(names))
    if own.pop() is not False or len(flow.shape) < 2 or flow.shape != traced.shape:
        return None
    for vector in (v for v in own if isinstance(v, Flow)):
        traced.labels.same(flow.axes[1], vector.axes[0])
    weight, bias = own[2:]
    zero = nowhere(len(flow.shape))
    if isinstance(weight, Flow) and isinstance(bias, Flow):
        closed = weight.zero_along(0) & bias.zero_along(0)
        zero = closed.view(1, -1, *[1] * (len(flow.shape) - 2))
    return Flow(flow.shape, flow.axes, zero)


def softmax(traced: TracedNode) -> Flow | None:
    """All channels along its dimension count, also those that are 0."""
    module: Any = traced.module
    dim = traced.argument(1, "dim") if module is None else module.dim
    if not isinstance(dim, int):
        return None
    (flow,) = traced.flows
    traced.pin(flow, [dim])
    return by_element(traced, keeps_zero=False)


def _channels(traced: TracedNode, axis: Tensor | None) -> None:
    """Note a norm's channels, the same in all its calls."""
    name = str(traced.node.target)
    if axis is None:
        axis = torch.full((traced.flows[0].shape[1],), EVERY)
    if name in traced.plan.axes:
        traced.labels.same(traced.plan.axes[name][1], axis)
    else:
        traced.plan.axes[name] = None, axis


def _whole_groups(labels: Labels, groups: Tensor) -> None:
    """All channels of a group stay or none, as its mean is over all of them."""

    def rule(kept: Tensor) -> None:
        kept[groups[kept[groups].any(1)]] = True

    labels.rule(rule, groups)


def _silent(module: Any, dim: int | None, rank: int) -> Tensor:
    """Where a norm's scale and shift are 0, bool that broadcasts to its output."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if weight is None:
        return nowhere(rank)
    silent = weight.detach().eq(0)
    if bias is not None:
        silent &= bias.detach().eq(0)
    silent = silent.cpu()
    return aligned(silent, rank) if dim is None else silent.view(1, -1, *[1] * (rank - 2))
