"""Concatenation: channels one behind the other."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl.export.channel_flow import Flow
from maskcl.export.kept_channels import EVERY
from maskcl.export.traced_node import TracedNode
from maskcl.nn.following.provenance import aligned


def concatenated(traced: TracedNode) -> Flow | None:
    """Channels one behind the other along one dimension, the same along others."""
    tensors = traced.argument(0, "tensors")
    dim = traced.argument(1, "dim", traced.kwargs.get("axis", 0))
    size = traced.shape
    if size is None or not isinstance(dim, int) or len(traced.flows) != len(tensors):
        return None
    if any(len(flow.shape) != len(size) for flow in traced.flows):
        return None
    rank, dim = len(size), dim % len(size)
    axes = traced.joined_axes(traced.flows, [d for d in range(rank) if d != dim])
    if any(flow.axes[dim] is not None for flow in traced.flows):
        parts = [flow.axes[dim] for flow in traced.flows]
        blank = [torch.full((flow.shape[dim],), EVERY) for flow in traced.flows]
        axes[dim] = torch.cat([b if a is None else a for a, b in zip(parts, blank, strict=True)])
    return Flow(size, tuple(axes), _zeros(traced.flows, dim))


def _zeros(flows: list[Flow], dim: int) -> Tensor:
    """Which elements of the result are 0."""
    zeros = [aligned(flow.zero, len(flow.shape)) for flow in flows]
    sizes = [max(zero.shape[d] for zero in zeros) for d in range(zeros[0].dim())]
    parts = []
    for flow, zero in zip(flows, zeros, strict=True):
        sizes[dim] = flow.shape[dim]
        parts.append(zero.expand(sizes))
    return torch.cat(parts, dim)
