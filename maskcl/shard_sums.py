"""Sums over the processes that share a network under ``fully_shard``; each is a message.

Every process has to call them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.shards import is_sharded, kind_of, shard


def total(value: Tensor, like: Sequence[Tensor]) -> Tensor:
    """The sum over the processes that share parameters, which are all sharded in one way.

    Every process has to call it.

    Raises:
        RuntimeError: only some of the parameters are sharded, or in several ways.
    """
    if len(set(map(kind_of, like))) > 1:
        raise RuntimeError(
            "parameters that tasks share are sharded in different ways, and some not at all or over"
            " other processes: call fully_shard for the network itself too, after its blocks"
        )
    found = value.clone()
    _add_up(found, like[0])
    return found


def totals(values: Sequence[Tensor], like: Sequence[Any], *, largest: bool = False) -> Tensor:
    """Of each value of a process's rows that of all rows, their sum or the largest: [n].

    One message for each way in which what they are of is sharded. Every process has to call it.

    Args:
        values: 0-d, of one dtype, n > 0.
        like: for each the tensor that it is of.
        largest: not their sum.
    """
    found = torch.stack([value.to(values[0].device) for value in values])
    kinds: dict[Any, list[int]] = {}
    for place, tensor in enumerate(like):
        if is_sharded(tensor):
            kinds.setdefault(kind_of(tensor), []).append(place)
    for places in kinds.values():
        part = found[places]
        _add_up(part, like[places[0]], largest)
        found[places] = part
    return found


def _add_up(value: Tensor, like: Any, largest: bool = False) -> None:
    """Sum over the processes that have other rows of a tensor, in place; or take the largest."""
    distributed = torch.distributed
    for dim, place in enumerate(like.placements if is_sharded(like) else ()):
        if place.is_shard() and like.device_mesh.size(dim) > 1:
            kind = distributed.ReduceOp.MAX if largest else distributed.ReduceOp.SUM
            # Parameters that wait on the CPU may be a GPU's, whose messages are.
            sent = value.to(like.device_mesh.device_type)
            distributed.all_reduce(sent, kind, group=like.device_mesh.get_group(dim))
            value.copy_(sent)


@torch.no_grad()
def added_up(value: Tensor, like: Any) -> Tensor:
    """The sum of all processes' tensors, each of all of ``like``: sharded as that is.

    Every process has to call it.
    """
    distributed = torch.distributed
    if is_sharded(like) and like.device_mesh.size() == distributed.get_world_size():
        from torch.distributed.tensor import DTensor, Partial

        mesh = like.device_mesh
        apart = DTensor.from_local(value, mesh, [Partial()] * mesh.ndim, run_check=False)
        return apart.redistribute(placements=like.placements)
    distributed.all_reduce(value)
    return shard(value, like) if is_sharded(like) else value


def total_norm(norms: Sequence[tuple[Tensor, Any]]) -> Tensor:
    """The norm of all, of norms of parts, each with a tensor that is sharded as the part is.

    Where one is sharded every process has to call it.
    """
    found = []
    for norm, like in norms:
        if is_sharded(like):
            squares = norm.square()
            _add_up(squares, like)
            # With one process it is to the bit what it is without sharding.
            norm = squares.sqrt() if like.device_mesh.size() > 1 else norm
        found.append(norm)
    if len(found) == 1:
        return found[0]
    return torch.linalg.vector_norm(torch.stack([norm.to(found[0]) for norm in found]))
