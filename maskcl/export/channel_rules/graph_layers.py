"""Layers of torch_geometric: message passing, readouts, rows picked by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.export.channel_flow import Flow, nowhere
from maskcl.export.channel_rules.linear_and_conv import layer_axes, need
from maskcl.export.traced_node import TracedNode
from maskcl.nn.following.provenance import aligned
from maskcl.nn.tasks.graph_convolutions import refusal


def message_passing(traced: TracedNode) -> Flow | None:
    """A convolution of torch_geometric: rows are mixed, channels by its linear layers alone.

    None where the module is another.
    """
    conv: Any = traced.module
    if refusal(conv) is not None:
        return None
    flow, *others = traced.flows
    if traced.shape is None or len(flow.shape) != 2:
        return None
    for other in others:
        traced.pin(other)
    linear = linears(conv)
    used = torch.stack([part.weight.detach().ne(0).cpu() for part in linear]).any(0)
    attention = type(conv).__name__ == "GATConv"
    alive = used & ~flow.zero_along(1)
    closed = ~alive.any(1)
    for vector in _biases(conv):
        if len(vector) == len(closed):
            closed &= vector.detach().eq(0).cpu()
    inputs, outputs = layer_axes(traced, flow, 1, len(used))
    need(traced.labels, inputs.view(1, -1), outputs, alive[None])
    if attention:
        traced.labels.pin(outputs)  # heads, and vectors over them
    if attention and len(outputs) != traced.shape[1]:
        return Flow(traced.shape, (None, None), nowhere(2))  # heads are averaged
    return Flow(traced.shape, (None, outputs), closed.view(1, -1))


def linears(conv: Any) -> list[Any]:
    """The linear layers of a convolution, which all read the same channels."""
    # Where Piggyback's masks were, torch's own stand in the place of torch_geometric's.
    parts = conv.children()
    return [p for p in parts if isinstance(p, nn.Linear) or hasattr(p, "in_channels")]


def rows(traced: TracedNode) -> Flow | None:
    """Rows picked, added up or averaged: each channel stays by itself, and 0 stays 0."""
    flow, *others = traced.flows
    size = traced.shape
    if size is None or len(size) != len(flow.shape) or size[1:] != flow.shape[1:]:
        return None
    for other in others:
        traced.pin(other)
    traced.pin(flow, [0])
    zero = aligned(flow.zero, len(size)).all(0, keepdim=True)
    return Flow(size, (None, *flow.axes[1:]), zero)


def _biases(conv: Any) -> list[Tensor]:
    return [vector for name, vector in conv.named_parameters() if name.endswith("bias")]
