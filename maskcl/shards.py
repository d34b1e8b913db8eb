"""Parameters that ``fully_shard`` cut along their first dimension, so that a process has some rows.

Whoever needs a parameter's elements asks here: for the rows of this process (`local`), for all of
them (`whole`, a message that every process has to take part in), or for what belongs to its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = frozenset((Tensor, nn.Parameter))
"""torch's own classes of tensors."""

UNSHARDED = (
    "load its whole state (torch.distributed.checkpoint.state_dict.get_model_state_dict with"
    " full_state_dict=True) into a network that is not"
)
"""What to do where a sharded network cannot do it."""


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor, as the parameters of a network under ``fully_shard`` are."""
    return type(tensor) not in PLAIN and hasattr(tensor, "placements")


def are_plain(tensors: Iterable[Any]) -> bool:
    """Whether all are tensors or parameters of torch's own classes."""
    return PLAIN.issuperset(map(type, tensors))


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
    return span(tensor)


def span(tensor: Any, dim: int = 0) -> slice:
    """Which part of a dimension this process has, where a tensor is cut along that one at most."""
    for at, place in enumerate(tensor.placements):
        if place.is_shard():
            return _share(tensor.shape[dim], tensor.device_mesh, at)
    return slice(0, tensor.shape[dim])


def _share(count: int, mesh: Any, at: int) -> slice:
    """Which of so many rows this process has where a mesh's dimension shares them."""
    step = -(-count // mesh.size(at))
    first = min(count, step * mesh.get_local_rank(at))
    return slice(first, min(count, first + step))


def first_element(tensor: Tensor) -> int:
    """The index, in all of a tensor, of the first element that this process has."""
    if not is_sharded(tensor) or len(tensor) == 0:
        return 0
    first: int = rows(tensor).start
    return first * (tensor.numel() // len(tensor))


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """The rows of a whole tensor that this process has of the parameter ``like``; a view.

    One that is sharded already gives its rows.
    """
    if is_sharded(tensor):
        return local(tensor)
    return tensor[rows(like)] if is_sharded(like) else tensor


def shard(tensor: Tensor, like: Any, dim: int = 0) -> Tensor:
    """A whole tensor, the same in every process, cut along a dimension as ``like`` is by rows."""
    from torch.distributed.tensor import Shard

    rows(like)  # raises where it is cut otherwise
    places = [Shard(dim) if place.is_shard() else place for place in like.placements]
    return _placed(tensor, like.device_mesh, places)


def shard_as(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor of the shape of ``like``, the same in every process, sharded as that is.

    Raises:
        RuntimeError: that is sharded in another way than by rows, columns, ... of its dimensions.
    """
    return _placed(tensor.detach().to(local(like).device), like.device_mesh, like.placements)


def placed(caller: str, tensor: Any, own: Any) -> Any:
    """What is to be loaded, sharded as the tensor is that it goes into.

    Raises:
        RuntimeError: it is sharded, and that is not.
    """
    if is_sharded(own) and type(tensor) in PLAIN and tensor.shape == own.shape:
        return shard_as(tensor, own)
    if is_sharded(tensor) and own is not None and not is_sharded(own):
        raise RuntimeError(
            f"{caller}: the state is sharded and the network is not: give it"
            " torch.distributed.checkpoint.state_dict.get_model_state_dict's with"
            " full_state_dict=True, or call fully_shard for it first"
        )
    return tensor


@torch.no_grad()
def _placed(tensor: Tensor, mesh: Any, places: Sequence[Any]) -> Tensor:
    """A DTensor with a copy of this process's part; nothing is sent."""
    from torch.distributed.tensor import DTensor

    part = tensor
    for at, place in enumerate(places):
        if place.is_replicate():
            continue
        if not repr(place).startswith("Shard("):
            raise RuntimeError(f"a tensor is sharded as {place}, wanted along its dimensions")
        own = _share(part.shape[place.dim], mesh, at)
        part = part.narrow(place.dim, own.start, own.stop - own.start)
    options: Any = {"shape": tensor.shape, "stride": tensor.stride(), "run_check": False}
    return DTensor.from_local(part.clone(), mesh, places, **options)


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
