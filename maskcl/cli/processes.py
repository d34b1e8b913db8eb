"""The processes that torchrun starts for one command: all do it, and the first alone speaks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from maskcl.cli.options import CommandError
from maskcl.collective import together as all_together
from maskcl.text import sentence_of
from maskcl.training.accelerator import make_fabric

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def number() -> int:
    """This process's among those that torchrun started; 0 without it."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def count() -> int:
    """How many torchrun started; 1 without it."""
    found = [os.environ.get(name, "") for name in _NAMES]
    is_shared = all(found) and all(number.isdecimal() for number in found[:3])
    return max(int(os.environ["WORLD_SIZE"]), 1) if is_shared else 1


def is_first() -> bool:
    """Whether this process writes and speaks."""
    return number() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, the processes can reach each other; one that is alone needs nobody.

    Tensors of the CPU go by gloo, those of GPUs by NCCL.

    Raises:
        CommandError: they do not find each other.
    """
    if count() == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        torch.distributed.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise CommandError(
            f"the {count()} processes that torchrun started do not reach each other:"
            f" {sentence_of(error)[:200]}"
        ) from None
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, what one process refuses all refuse. All come by, and none before the others."""
    with all_together(count()):
        yield


def fabric_of(device: str, precision: str) -> Fabric | None:
    """A launched Fabric of all processes; None where there is one.

    Raises:
        CommandError: a computer has fewer GPUs than processes.
    """
    if count() == 1:
        return None
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count()))
    is_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if is_cuda and torch.cuda.device_count() < here:
        raise CommandError(
            f"torchrun started {here} processes here, and torch finds {torch.cuda.device_count()}"
            " CUDA devices: --nproc-per-node says how many, --device cpu needs none"
        )
    try:
        fabric = make_fabric(device, precision, here, count() // here)
    except ValueError as error:
        raise CommandError(str(error).replace("Trainer: ", "")) from None
    fabric.launch()
    return fabric


def share_of(batch_size: int) -> int:
    """How many of a step's samples each process takes.

    Raises:
        CommandError: they cannot take equally many.
    """
    if batch_size % count():
        raise CommandError(
            f"batch-size {batch_size} is shared among {count()} processes, wanted a multiple of"
            f" {count()}"
        )
    return batch_size // count()


def check_options(options: Any) -> None:
    """Raise CommandError where a run cannot be shared as its options have it."""
    if count() == 1:
        return
    share_of(options.batch_size)
    if options.references:
        raise CommandError(
            "references are networks that one process trains: leave out --references, or torchrun"
        )
    if options.NAME == "joint":
        raise CommandError("joint mixes the tasks' batches in one process: leave out torchrun")


def synchronised(net: nn.Module, device: torch.device) -> None:
    """Let BatchNorm take its statistics of the whole batch, not of each process's part.

    Raises:
        CommandError: the processes are on the CPU, where torch has no such norm.
    """
    if count() == 1:
        return
    if device.type != "cuda":
        raise CommandError(
            "sync-batchnorm is for CUDA: on the CPU torch has no BatchNorm over several processes"
        )
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
