"""What processes that share a run do together, and how they see that they hold the same."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from maskcl.collective import everyones
from maskcl.nn.tasks.bits import fingerprints
from maskcl.nn.tasks.kept_bits import share_statistics
from maskcl.shards import is_sharded

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Item = TypeVar("Item")

LOST = "another process of the run has ended or does not answer"

# What torch's backends say where a connection is gone, of errors without a class of their own.
_GONE = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


def in_turn(fabric: Fabric, items: Iterable[Item]) -> Iterator[Item]:
    """Those of the items that are this process's: one after the other has one."""
    return islice(items, fabric.global_rank, None, fabric.world_size)


def in_order(fabric: Fabric, own: list[Item]) -> list[Item]:
    """All items that were dealt by `in_turn`, or what was made of them, in their order."""
    if fabric.world_size == 1:
        return own
    dealt = everyones(fabric.world_size, own)
    longest = len(dealt[0])  # the first begins
    return [part[i] for i in range(longest) for part in dealt if i < len(part)]


@contextlib.contextmanager
def naming_the_lost(fabric: Fabric) -> Iterator[None]:
    """Inside, that another process has ended is a sentence.

    gloo sees at once that a process was killed; NCCL waits for the process group's timeout, if
    torchrun does not end all before; a machine that vanishes is missed after that timeout.

    Raises:
        RuntimeError: a process has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if fabric.world_size == 1 or not _is_lost(error):
            raise
        said = " ".join(str(error).split())[:200]
        raise RuntimeError(
            f"Trainer: {LOST}; what it says tells why, and the run can be resumed from its last"
            f" checkpoint ({said})"
        ) from error


def _is_lost(error: RuntimeError) -> bool:
    kinds = getattr(torch.distributed, "DistError", ())
    return isinstance(error, kinds) or any(part in str(error) for part in _GONE)


def share_running(fabric: Fabric, net: nn.Module) -> None:
    """Give all processes the first one's running statistics of the norms that are in training.

    Each gathers them from its own samples, and takes the first one's in its next forward.
    """
    if fabric.world_size > 1:
        share_statistics(
            module
            for module in net.modules()
            if module.training and getattr(module, "running_mean", None) is not None
        )


def check_same(fabric: Fabric, net: nn.Module, task: int) -> None:
    """Raise, in every process, unless all hold the same network, bit for bit.

    Shards, which differ rightly, are not compared.

    Args:
        fabric: launched; every process has to call it.
        net: what is compared is its ``state_dict``.
        task: that has ended, for the message.

    Raises:
        RuntimeError: names what differs.
    """
    if fabric.world_size == 1:
        return
    state = net.state_dict()
    whole = {n: t for n, t in state.items() if isinstance(t, Tensor) and not is_sharded(t)}
    hashes = fingerprints(list(whole.values())).tolist()
    mine = dict(zip(whole, hashes, strict=True))
    found = everyones(fabric.world_size, mine)
    names = sorted(set().union(*found))
    differ = [name for name in names if len({one.get(name) for one in found}) > 1]
    if differ:
        raise RuntimeError(
            f"Trainer: after task {task} processes hold different values of"
            f" {', '.join(differ[:5])}{' and more' if differ[5:] else ''}; what was saved before is"
            " as it was"
        )
