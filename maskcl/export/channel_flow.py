"""What is known of a tensor and its channels on the way through one task's plain network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskcl.export.kept_channels import along
from maskcl.nn.following.provenance import aligned


@dataclass(frozen=True, eq=False)
class Flow:
    """One tensor of the graph.

    Attributes:
        shape: its size on the example inputs.
        axes: by dimension, the labels of its channels; None where the dimension stays as it is.
        zero: bool, broadcastable to ``shape``: the element is exactly 0 whatever the input.
    """

    shape: tuple[int, ...]
    axes: tuple[Tensor | None, ...]
    zero: Tensor

    @property
    def is_labelled(self) -> bool:
        """Whether any dimension may lose channels."""
        return any(axis is not None for axis in self.axes)

    def zero_along(self, dim: int) -> Tensor:
        """Channels along ``dim`` of which every element is 0, bool [size]."""
        rows = aligned(self.zero, len(self.shape)).movedim(dim, 0)
        rows = rows.reshape(rows.shape[0], -1).all(1)
        return rows.expand(self.shape[dim])

    def kept(self, kept: Tensor, dim: int) -> Tensor:
        """Channels along ``dim`` that stay, bool [size]."""
        axis = self.axes[dim]
        return torch.ones(self.shape[dim], dtype=torch.bool) if axis is None else kept[axis]

    def selected(self, tensor: Tensor, kept: Tensor) -> Tensor:
        """What stays of a tensor of this shape."""
        for dim, axis in enumerate(self.axes):
            if axis is not None and not bool(kept[axis].all()):
                tensor = tensor.index_select(dim, kept[axis].nonzero().flatten().to(tensor.device))
        return tensor


def whole(shape: Sequence[int]) -> Flow:
    """A tensor of which nothing is known and all stays."""
    return Flow(tuple(shape), (None,) * len(shape), nowhere(len(shape)))


def with_axis(shape: Sequence[int], dim: int, axis: Tensor, zero: Tensor) -> Flow:
    """A tensor labelled along one dimension; ``zero`` is bool [size] along it."""
    axes: list[Tensor | None] = [None] * len(shape)
    axes[dim] = axis
    return Flow(tuple(shape), tuple(axes), along(zero, dim, len(shape)))


def nowhere(rank: int) -> Tensor:
    """No element is known to be 0."""
    return torch.zeros((1,) * rank, dtype=torch.bool)
