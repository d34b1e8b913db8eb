"""A network's state among a checkpoint's tensors, and back."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.checkpoint.content import CheckpointError
from maskcl.shards import is_sharded, shard_as, whole


def network_state(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, dict[str, slice | None]]]:
    """A network's state for ``Checkpoint.tensors``, and what of it is for ``Checkpoint.lasting``.

    Names are those of the ``state_dict``, with ``network.`` before them.
    """
    lasting_state: Any = getattr(net, "lasting_state", dict)
    own = lasting_state()
    lasting = {
        group: {f"network.{name}": rows for name, rows in names.items()}
        for group, names in own.items()
    }
    return {f"network.{name}": tensor for name, tensor in net.state_dict().items()}, lasting


def load_network(net: nn.Module, tensors: dict[str, Tensor], path: Any = "the checkpoint") -> None:
    """Copy ``network.*`` into the network, after checking that every name, shape and dtype fits.

    A network of tasks takes those of one with fewer tasks too (``net.complete_state``).

    Raises:
        CheckpointError: something does not fit; the network is unchanged then.
    """
    found = take(tensors, "network.")
    like: Any = net
    if hasattr(net, "complete_state"):
        try:
            if "growth" in found and hasattr(net, "grow_like"):
                # Loading will grow the network itself; here it may yet be refused.
                like = copy.deepcopy(net)
                like.grow_like(found)
            found = like.complete_state(found)
        except RuntimeError as error:
            raise CheckpointError(f"{path} does not fit: {error}") from None
    wanted = like.state_dict()
    own, given = wanted.get("inference.config"), found.get("inference.config")
    if own is not None and given is not None and not torch.equal(own.cpu(), given.cpu()):
        said = [bytes(config.cpu().tolist()).decode() for config in (given, own)]
        raise CheckpointError(
            f"{path} does not fit: its tasks are inferred by {said[0]}, the network's by {said[1]}"
        )
    # Statistics come and go with the tasks that were measured: the network follows the state.
    wanted = {name: t for name, t in wanted.items() if not name.startswith("inference.")}
    fixed = {name for name in found if not name.startswith("inference.")}
    for name in sorted(fixed ^ wanted.keys()):
        where = "only in the checkpoint" if name in found else "only in the network"
        raise CheckpointError(f"{path} does not fit: {name} is {where}")
    for name, tensor in wanted.items():
        other = found[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise CheckpointError(
                f"{path} does not fit: {name} is {other.dtype} {list(other.shape)},"
                f" the network's is {tensor.dtype} {list(tensor.shape)}"
            )
    net.load_state_dict({n: _as(t, wanted[n]) if n in wanted else t for n, t in found.items()})


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor, sharded as the network's is."""
    if is_sharded(like) == is_sharded(tensor):
        return tensor
    return shard_as(tensor, like) if is_sharded(like) else whole(tensor)


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name starts with the prefix, without it."""
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}


def give_up(net: Any, task: int) -> None:
    """Let a network that a run was interrupted with take the run's checkpoint up.

    Args:
        net: with which nothing is in training afterwards.
        task: of the network, to go on with; no longer finished afterwards.
    """
    if net.training_task is not None:
        net.forget_task(net.training_task)
    if net.finished[task : task + 1].any():
        finished = net.finished.clone()
        finished[task] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is not any more
            net.load_state_dict({**net.state_dict(), "finished": finished})
