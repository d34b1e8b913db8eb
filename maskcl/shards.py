"""Parameters that ``fully_shard`` cut along their first dimension, so that a process has some rows.

Whoever needs a parameter's elements asks here: for the rows of this process (`local`), for all of
them (`whole`, a message that every process has to take part in), or for what belongs to its rows.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = frozenset((Tensor, nn.Parameter))

UNSHARDED = (
    "load its whole state (torch.distributed.checkpoint.state_dict.get_model_state_dict with"
    " full_state_dict=True) into a network that is not"
)
"""What to do where a sharded network cannot do it."""


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, as the parameters of a network under ``fully_shard`` are."""
    return type(tensor) not in _PLAIN and hasattr(tensor, "placements")


def are_plain(tensors: Iterable[Any]) -> bool:
    """Whether all are tensors or parameters of torch's own classes."""
    return _PLAIN.issuperset(map(type, tensors))


def are_rows(tensor: Any) -> bool:
    """Whether each process has some rows of a DTensor, one after the other, or all of it."""
    cuts = [place for place in tensor.placements if not place.is_replicate()]
    # Of two cuts, or a strided one, rows do not follow each other.
    return not cuts or (len(cuts) == 1 and repr(cuts[0]) == "Shard(dim=0)")


def local(tensor: Tensor) -> Tensor:
    """What this process has of it, not copied; a tensor that is not sharded itself."""
    return tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of it, detached. Where it is sharded every process has to call it."""
    if not is_sharded(tensor):
        return tensor.detach()
    found: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return found


def rows(tensor: Any) -> slice:
    """Which rows this process has of a sharded tensor.

    Raises:
        RuntimeError: it is sharded otherwise.
    """
    if not are_rows(tensor):
        raise RuntimeError(
            f"a parameter is sharded as {tensor.placements}, wanted along its first dimension:"
            " fully_shard without shard_placement_fn and without other parallelism"
        )
    count, mesh = len(tensor), tensor.device_mesh
    for dim, place in enumerate(tensor.placements):
        if place.is_shard():
            step = -(-count // mesh.size(dim))
            first = min(count, step * mesh.get_local_rank(dim))
            return slice(first, min(count, first + step))
    return slice(0, count)


def first_element(tensor: Tensor) -> int:
    """The index, in all of a tensor, of the first element that this process has."""
    if not is_sharded(tensor) or len(tensor) == 0:
        return 0
    first: int = rows(tensor).start
    return first * (tensor.numel() // len(tensor))


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """The rows of a whole tensor that this process has of the parameter ``like``; a view."""
    return tensor[rows(like)] if is_sharded(like) else tensor


@torch.no_grad()
def write(parameter: Tensor, values: Tensor) -> None:
    """Copy a whole tensor into a parameter, each process its rows."""
    local(parameter).copy_(cut(values, parameter))


def cut_ends(
    parameter: Tensor, out: Tensor, into: Tensor, groups: int
) -> tuple[Tensor, Tensor, int]:
    """The words of both ends for the rows that this process has: see ``nn.Protection``.

    Args:
        parameter: [O, I, *] or [O].
        out: int64 [O, W] or [1, W].
        into: int64 [groups * I, W] or [1, W].
        groups: of its convolution. Where the rows begin or end inside a group there are more and
            smaller ones then, and their columns' words once each.
    """
    if not is_sharded(parameter):
        return out, into, groups
    mine = rows(parameter)
    count = mine.stop - mine.start
    ends = out[mine] if out.shape[0] > 1 else out
    if groups == 1 or count == 0:
        return ends, into[: into.shape[0] // groups], 1
    each = len(parameter) // groups
    size = gcd(each, mine.start, count)
    if into.shape[0] > 1:
        columns = into.view(groups, -1, into.shape[1])
        own = torch.arange(mine.start, mine.stop, size, device=into.device) // each
        into = columns[own].flatten(0, 1)
    return ends, into, count // size


def kind_of(tensor: Any) -> Any:
    """How it is sharded, None where it is not."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None


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


def _add_up(value: Tensor, like: Any) -> None:
    """Sum over the processes that have other rows of a tensor, in place."""
    for dim, place in enumerate(like.placements if is_sharded(like) else ()):
        if place.is_shard() and like.device_mesh.size(dim) > 1:
            torch.distributed.all_reduce(value, group=like.device_mesh.get_group(dim))


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


class _Gather(torch.autograd.Function):
    """All of a sharded tensor; its gradient is the mean over processes, each has its rows of it."""

    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        ctx.mesh, ctx.placements = tensor.device_mesh, tensor.placements
        return whole(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        from torch.distributed.tensor import DTensor, Partial

        mesh = ctx.mesh
        apart = DTensor.from_local(grad / mesh.size(), mesh, [Partial()] * mesh.ndim)
        return apart.redistribute(placements=ctx.placements)


def gather(tensor: Tensor) -> Tensor:
    """All of it, for a forward in which the parameter learns; every process has to call it."""
    found: Tensor = _Gather.apply(tensor) if is_sharded(tensor) else tensor
    return found


@contextlib.contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, modules under ``fully_shard`` have all of their parameters, whatever passes through.

    Forwards and backwards send nothing then, so that processes may do as many as they like, and
    may ask for gradients of parameters. Every process has to enter and leave it.
    """
    found = _of_fsdp(modules)
    groups = [g for module in found for g in module._get_fsdp_state()._fsdp_param_groups]
    before = [(group.post_forward_mesh_info, group.reshard_after_backward) for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info, group.reshard_after_backward = None, False
        for module in found:
            module.unshard()
        yield
    finally:
        for group, (mesh, is_after) in zip(groups, before, strict=True):
            group.post_forward_mesh_info, group.reshard_after_backward = mesh, is_after
        for module in found:
            module.reshard()


def reshard(modules: Iterable[nn.Module]) -> None:
    """Give modules the parameters back that ``fully_shard`` put away.

    A root keeps all of its parameters after a forward, in place of the shards that train.
    """
    for module in _of_fsdp(modules):
        module.reshard()


def _of_fsdp(modules: Iterable[nn.Module]) -> list[Any]:
    """Those that ``fully_shard`` was called for."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    modules = list(modules)
    # Of a thousand tasks there are thousands of modules, and few kinds.
    kinds = {kind for kind in set(map(type, modules)) if issubclass(kind, fsdp.FSDPModule)}
    return [module for module in modules if type(module) in kinds] if kinds else []
