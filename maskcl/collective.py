"""What all processes of ``torch.distributed``'s default group do together."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

Item = TypeVar("Item")


def processes() -> tuple[int, int]:
    """How many there are, and which of them this is; 1 and 0 where nothing is distributed."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1, 0
    return distributed.get_world_size(), distributed.get_rank()


def everyones(processes: int, own: Item) -> list[Item]:
    """What each process has, by its number; every process has to call it.

    Args:
        processes: how many share the run.
        own: of this process; it is pickled, its tensors on the CPU.
    """
    if processes == 1:
        return [own]
    found: list[Any] = [None] * processes
    torch.distributed.all_gather_object(found, own)
    return found


@contextlib.contextmanager
def together(processes: int) -> Iterator[None]:
    """Inside, what one process refuses all refuse: no other waits for it then.

    Every process has to come by. Where several raise, each raises its own.
    """
    error = None
    try:
        yield
    except Exception as found:
        error = found
    errors = everyones(processes, portable(error))
    if error is not None:
        raise error
    for other in errors:
        if other is not None:
            raise other


def portable(error: Exception | None) -> Exception | None:
    """An error that other processes can read."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(str(error))
    return error
