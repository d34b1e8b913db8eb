"""The rows and columns of a tensor that hold all of its protected elements: what a guard copies."""

from __future__ import annotations

import torch
from torch import Tensor

Sides = tuple[Tensor, Tensor, int]
_SMALL = 1 << 16  # elements: copying all of them takes less than looking some up


class ProtectedBlock:
    """Of a parameter, and of its optimizer's state.

    Args:
        shape: of the parameter, [O, I, *] or [O].
        sides: out_tasks, in_tasks and groups, as in `Protection`.
        exact: exact protection, else ``min``.

    Attributes:
        sides: of the block.
        is_whole: all of the block is protected.
    """

    def __init__(self, shape: torch.Size, sides: Sides, exact: bool) -> None:
        out, into, groups = sides
        self._rows: Tensor | None = None
        self._columns: Tensor | None = None
        if groups == 1 and shape.numel() >= _SMALL:  # a group's rows meet their own columns
            self._rows = _used(out)
            self._columns = _used(into) if len(shape) > 1 else None
        out = out if self._rows is None else out[self._rows]
        into = into if self._columns is None else into[self._columns]
        self.sides = out, into, groups
        if exact:
            whole = (_of_all(out) & _of_all(into)).any()
        else:
            whole = _is_used(out).all() & _is_used(into).all()
        self.is_whole = groups == 1 and bool(whole)

    def part_of(self, tensor: Tensor) -> Tensor:
        """The block of a tensor of the parameter's shape, the tensor itself where that is all."""
        if self._rows is not None:
            tensor = tensor.index_select(0, self._rows)
        if self._columns is not None:
            tensor = tensor.index_select(1, self._columns)
        return tensor

    def copy_of(self, tensor: Tensor) -> Tensor:
        """The same, in memory of its own."""
        part = self.part_of(tensor)
        return part.clone() if part is tensor else part

    def put(self, tensor: Tensor, block: Tensor) -> None:
        """Write a block to where it lies in a tensor."""
        rows, columns = self._rows, self._columns
        if columns is None:
            if rows is not None:
                tensor.index_copy_(0, rows, block)
            elif block is not tensor:
                tensor.copy_(block)
        elif tensor.is_contiguous():
            # By places in memory: two indices at a time take five times as long.
            first = torch.arange(len(tensor), device=columns.device) if rows is None else rows
            places = (first[:, None] * tensor.shape[1] + columns).flatten()
            if tensor.dim() == 2:
                tensor.view(-1).scatter_(0, places, block.reshape(-1))
            else:
                tensor.flatten(0, 1).index_copy_(0, places, block.flatten(0, 1))
        elif rows is None:
            tensor.index_copy_(1, columns, block)
        else:
            tensor.index_put_((rows[:, None], columns), block)


def _is_used(side: Tensor) -> Tensor:
    return (side != 0).any(1)


def _used(side: Tensor) -> Tensor | None:
    """Numbers of the units that have a task; None for all, and where one row stands for all."""
    used = _is_used(side).nonzero().flatten()
    return used if side.shape[0] > 1 and len(used) < side.shape[0] else None


def _of_all(side: Tensor) -> Tensor:
    """Of each bit of the words, whether all units have it: bool [W, 64]."""
    bits = torch.arange(64, device=side.device)
    return ((side.unsqueeze(-1) >> bits & 1) != 0).all(0)
