"""Linear layers and convolutions: which inputs their outputs need, and groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskcl.export.channel_flow import Flow, with_axis
from maskcl.export.kept_channels import EVERY, Labels
from maskcl.export.traced_node import TracedNode

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_or_conv(traced: TracedNode) -> Flow | None:
    """Flow behind a linear layer or a convolution; None where the module is another."""
    module = traced.module
    if type(module) is nn.Linear:
        return _weighted(traced, module.weight, module.bias, -1, 1)
    if isinstance(module, CONVS) and type(module) in CONVS:
        dim = len(traced.flows[0].shape) - module.weight.dim() + 1
        weight = module.weight.flatten(2).ne(0).any(2)
        return _weighted(traced, weight, module.bias, dim, module.groups)
    return None


def _weighted(
    traced: TracedNode, weight: Tensor, bias: Tensor | None, dim: int, groups: int
) -> Flow | None:
    """A layer with weights [out, in / groups] whose channels are along ``dim``."""
    if len(traced.flows) != 1 or traced.shape is None:
        return None
    (flow,) = traced.flows
    dim %= len(flow.shape)
    used = weight.detach().ne(0).cpu()
    zero = flow.zero_along(dim)
    # [groups, out / groups, in / groups]: which inputs an output really depends on.
    alive = used.view(groups, -1, used.shape[1]) & ~zero.view(groups, 1, -1)
    closed = ~alive.any(2).flatten()
    if bias is not None:
        closed &= bias.detach().eq(0).cpu()
    inputs, outputs = layer_axes(traced, flow, dim, len(used))
    need(traced.labels, inputs.view(groups, -1), outputs, alive)
    result = with_axis(traced.shape, dim, outputs, closed)
    if dim < len(flow.shape) - 1:
        traced.pin(flow, range(dim + 1, len(flow.shape)))  # positions are mixed
        return result
    return Flow(traced.shape, (*flow.axes[:-1], outputs), result.zero)


def layer_axes(traced: TracedNode, flow: Flow, dim: int, width: int) -> tuple[Tensor, Tensor]:
    """Labels of a layer's inputs and outputs: the same in all its calls."""
    name, inputs = str(traced.node.target), flow.axes[dim]
    if inputs is None:
        inputs = torch.full((flow.shape[dim],), EVERY)
    if name in traced.plan.axes:
        before, outputs = traced.plan.axes[name]
        traced.labels.same(before, inputs)
        return inputs, outputs
    outputs = traced.labels.fresh(width)
    traced.plan.axes[name] = inputs, outputs
    return inputs, outputs


def need(labels: Labels, inputs: Tensor, outputs: Tensor, alive: Tensor) -> None:
    """What stays of a layer's outputs needs the inputs that it depends on; groups stay even.

    Args:
        labels: gains the rule.
        inputs: [groups, in / groups].
        outputs: [out].
        alive: [groups, out / groups, in / groups], whether an output depends on an input.
    """
    outputs = outputs.view(len(inputs), -1)

    def rule(kept: Tensor) -> None:
        needed = (alive & kept[outputs].unsqueeze(2)).any(1)
        kept[inputs[needed]] = True

    labels.rule(rule, inputs, outputs)
    if len(inputs) > 1:
        labels.choice(lambda kept: _even(kept, inputs, outputs), inputs, outputs)


def _even(kept: Tensor, inputs: Tensor, outputs: Tensor) -> None:
    """In each group that has any, as many inputs and outputs as the fullest group has."""
    live = kept[inputs].any(1) | kept[outputs].any(1)
    for rows in (inputs[live], outputs[live]):
        counts = kept[rows].sum(1)
        wanted = int(counts.max()) if len(counts) else 0
        for row in rows[counts < wanted]:
            kept[row[~kept[row]][: wanted - int(kept[row].sum())]] = True
