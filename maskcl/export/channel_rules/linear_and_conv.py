"""Rules for modules with parameters, and their smaller selves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskcl.export.flow import Flow, with_axis
from maskcl.export.labels import EVERY, Labels
from maskcl.export.step import Step, nowhere
from maskcl.nn.following.provenance import aligned
from maskcl.nn.hat.plain import UnitMask
from maskcl.nn.tasks.graph_convolutions import refusal

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layer_flow(step: Step) -> Flow | None:
    """Flow behind a linear layer, a convolution or a message passing; None where it is another."""
    module = step.module
    if type(module) is nn.Linear:
        return _weighted(step, module.weight, module.bias, -1, 1)
    if isinstance(module, CONVS) and type(module) in CONVS:
        dim = len(step.flows[0].shape) - module.weight.dim() + 1
        weight = module.weight.flatten(2).ne(0).any(2)
        return _weighted(step, weight, module.bias, dim, module.groups)
    assert module is not None
    if refusal(module) is None:
        return _message_passing(step, module)
    return None


def _weighted(
    step: Step, weight: Tensor, bias: Tensor | None, dim: int, groups: int
) -> Flow | None:
    """A layer with weights [out, in / groups] whose channels are along ``dim``."""
    if len(step.flows) != 1 or step.shape is None:
        return None
    (flow,) = step.flows
    dim %= len(flow.shape)
    used = weight.detach().ne(0).cpu()
    zero = flow.zero_along(dim)
    # [groups, out / groups, in / groups]: which inputs an output really depends on.
    alive = used.view(groups, -1, used.shape[1]) & ~zero.view(groups, 1, -1)
    closed = ~alive.any(2).flatten()
    if bias is not None:
        closed &= bias.detach().eq(0).cpu()
    inputs, outputs = _layer_axes(step, flow, dim, len(used))
    _need(step.labels, inputs.view(groups, -1), outputs, alive)
    result = with_axis(step.shape, dim, outputs, closed)
    if dim < len(flow.shape) - 1:
        step.pin(flow, range(dim + 1, len(flow.shape)))  # positions are mixed
        return result
    return Flow(step.shape, (*flow.axes[:-1], outputs), result.zero)


def _layer_axes(step: Step, flow: Flow, dim: int, width: int) -> tuple[Tensor, Tensor]:
    """Labels of a layer's inputs and outputs: the same in all its calls."""
    name, inputs = str(step.node.target), flow.axes[dim]
    if inputs is None:
        inputs = torch.full((flow.shape[dim],), EVERY)
    if name in step.plan.axes:
        before, outputs = step.plan.axes[name]
        step.labels.same(before, inputs)
        return inputs, outputs
    outputs = step.labels.fresh(width)
    step.plan.axes[name] = inputs, outputs
    return inputs, outputs


def _need(labels: Labels, inputs: Tensor, outputs: Tensor, alive: Tensor) -> None:
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

    labels.rules.append(rule)
    if len(inputs) > 1:
        labels.choices.append(lambda kept: _even(kept, inputs, outputs))


def _even(kept: Tensor, inputs: Tensor, outputs: Tensor) -> None:
    """In each group that has any, as many inputs and outputs as the fullest group has."""
    live = kept[inputs].any(1) | kept[outputs].any(1)
    for rows in (inputs[live], outputs[live]):
        counts = kept[rows].sum(1)
        wanted = int(counts.max()) if len(counts) else 0
        for row in rows[counts < wanted]:
            kept[row[~kept[row]][: wanted - int(kept[row].sum())]] = True


def _message_passing(step: Step, conv: Any) -> Flow | None:
    """A convolution of torch_geometric: rows are mixed, channels by its linear layers alone."""
    flow, *others = step.flows
    if step.shape is None or len(flow.shape) != 2:
        return None
    for other in others:
        step.pin(other)
    linear = _linears(conv)
    used = torch.stack([part.weight.detach().ne(0).cpu() for part in linear]).any(0)
    attention = type(conv).__name__ == "GATConv"
    alive = used & ~flow.zero_along(1)
    closed = ~alive.any(1)
    for vector in _biases(conv):
        if len(vector) == len(closed):
            closed &= vector.detach().eq(0).cpu()
    inputs, outputs = _layer_axes(step, flow, 1, len(used))
    _need(step.labels, inputs.view(1, -1), outputs, alive[None])
    if attention:
        step.labels.pin(outputs)  # heads, and vectors over them
    if attention and len(outputs) != step.shape[1]:
        return Flow(step.shape, (None, None), nowhere(2))  # heads are averaged
    return Flow(step.shape, (None, outputs), closed.view(1, -1))


def _linears(conv: Any) -> list[Any]:
    return [part for part in conv.children() if hasattr(part, "in_channels")]


def _biases(conv: Any) -> list[Tensor]:
    return [vector for name, vector in conv.named_parameters() if name.endswith("bias")]


def norm_flow(step: Step) -> Flow | None:
    """Flow behind a norm or a UnitMask; None where the module is another."""
    module, size = step.module, step.shape
    if len(step.flows) != 1 or size is None or step.flows[0].shape != size:
        return None
    (flow,) = step.flows
    rank = len(size)
    if isinstance(module, UnitMask):
        closed = with_axis(size, module.dim % rank, torch.empty(0), module.mask.cpu() == 0).zero
        return Flow(size, flow.axes, aligned(flow.zero, rank) | closed)
    if isinstance(module, _BatchNorm):
        _channels(step, flow.axes[1])
        return Flow(size, flow.axes, _silent(module, 1, rank))
    if isinstance(module, nn.GroupNorm):
        _channels(step, flow.axes[1])
        if flow.axes[1] is not None:
            _whole_groups(step.labels, flow.axes[1].view(module.num_groups, -1))
        step.pin(flow, range(2, rank))
        return Flow(size, flow.axes, _silent(module, 1, rank))
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        # Means are over all channels: none can go.
        step.pin(flow, range(rank - len(module.normalized_shape), rank))
        return Flow(size, flow.axes, _silent(module, None, rank))
    return None


def _channels(step: Step, axis: Tensor | None) -> None:
    """Note a norm's channels, the same in all its calls."""
    name = str(step.node.target)
    if axis is None:
        axis = torch.full((step.flows[0].shape[1],), EVERY)
    if name in step.plan.axes:
        step.labels.same(step.plan.axes[name][1], axis)
    else:
        step.plan.axes[name] = None, axis


def _whole_groups(labels: Labels, groups: Tensor) -> None:
    """All channels of a group stay or none, as its mean is over all of them."""

    def rule(kept: Tensor) -> None:
        kept[groups[kept[groups].any(1)]] = True

    labels.rules.append(rule)


def _silent(norm: Any, dim: int | None, rank: int) -> Tensor:
    """Where a norm's scale and shift are 0, bool that broadcasts to its output."""
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if weight is None:
        return nowhere(rank)
    silent = weight.detach().eq(0)
    if bias is not None:
        silent &= bias.detach().eq(0)
    silent = silent.cpu()
    return aligned(silent, rank) if dim is None else silent.view(1, -1, *[1] * (rank - 2))


@torch.no_grad()
def shrink(module: Any, inputs: Tensor | None, outputs: Tensor) -> None:
    """Take channels out of a module, in place.

    Args:
        module: a layer or norm whose calls `layer_flow` or `norm_flow` followed.
        inputs: channels that stay, bool [in]; None for a norm.
        outputs: channels that stay, bool [out].
    """
    if isinstance(module, nn.Linear):
        assert inputs is not None
        _take(module, "weight", lambda w: w[outputs][:, inputs])
        _take(module, "bias", lambda b: b[outputs])
        module.in_features, module.out_features = int(inputs.sum()), int(outputs.sum())
    elif isinstance(module, CONVS):
        assert inputs is not None
        _shrink_conv(module, inputs, outputs)
    elif isinstance(module, (_BatchNorm, nn.GroupNorm)):
        for name in ("weight", "bias", "running_mean", "running_var"):
            _take(module, name, lambda v: v[outputs])
        if isinstance(module, nn.GroupNorm):
            module.num_groups = int(outputs.view(module.num_groups, -1).any(1).sum())
            module.num_channels = int(outputs.sum())
        else:
            module.num_features = int(outputs.sum())
    else:
        assert inputs is not None
        for part in _linears(module):
            _take(part, "weight", lambda w: w[outputs][:, inputs])
            _take(part, "bias", lambda b: b[outputs])
            part.in_channels, part.out_channels = int(inputs.sum()), int(outputs.sum())
        module.in_channels = int(inputs.sum())
        if not bool(outputs.all()):  # a convolution with attention keeps all
            _take(module, "bias", lambda b: b[outputs])
            module.out_channels = int(outputs.sum())


def _shrink_conv(conv: Any, inputs: Tensor, outputs: Tensor) -> None:
    ins, outs = inputs.view(conv.groups, -1), outputs.view(conv.groups, -1)
    live = outs.any(1) | ins.any(1)
    groups = conv.weight.view(conv.groups, -1, *conv.weight.shape[1:])
    parts = [groups[g][outs[g]][:, ins[g]] for g in live.nonzero().flatten().tolist()]
    _take(conv, "weight", lambda w: torch.cat(parts))
    _take(conv, "bias", lambda b: b[outputs])
    conv.groups = int(live.sum())
    conv.in_channels, conv.out_channels = int(inputs.sum()), int(outputs.sum())


def _take(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change a parameter or buffer of a module, where it has one of the name."""
    value = getattr(module, name, None)
    if value is None:
        return
    new = change(value.detach()).clone()
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(new, requires_grad=value.requires_grad)
    else:
        module._buffers[name] = new
