"""A run's checkpoint: everything that it takes to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from maskcl.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_network,
    load_optimizer,
    optimizer_state,
    save_checkpoint,
    take,
)
from maskcl.randomness import rng_state, set_rng_state
from maskcl.text import sentence_of
from maskcl.training.result import Result


@dataclass(frozen=True)
class RunCheckpoint:
    """A run as it was saved; its parts are taken up in the order of the methods.

    Attributes:
        path: of the file.
        content: what is in it.
    """

    path: Path
    content: Checkpoint

    @property
    def task(self) -> int:
        """The task to go on with."""
        return self.content.position["task"]

    @property
    def first_task(self) -> int:
        """The network's task that the scenario's task 0 is."""
        return self.content.position.get("first_task", 0)

    def check_first_task(self, wanted: int | None) -> None:
        """Raise CheckpointError where the run that goes on is asked for another first task."""
        if wanted not in (None, self.first_task):
            raise CheckpointError(
                f"{self.path} is of a run with first_task {self.first_task}, this run has {wanted}"
            )

    @property
    def epoch(self) -> int:
        """The epoch of it to go on with; above 0 the task is in training."""
        return self.content.position["epoch"]

    @property
    def result(self) -> Result:
        """What was measured so far.

        Raises:
            CheckpointError: the checkpoint holds something else.
        """
        with misfits(self.path):
            return Result.from_dict(self.content.facts["result"])

    def restore(
        self,
        net: nn.Module,
        device: torch.device,
        state: Any = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        """Put the network, the method's state, the optimizer and all chance back.

        Args:
            net: of the run; its task is begun if one was in training.
            device: whose generator is restored beside the CPU's.
            state: the method's, of a task in training.
            optimizer: of a task in training.

        Raises:
            CheckpointError: something does not fit.
        """
        tensors, facts = self.content.tensors, self.content.facts
        load_network(net, tensors, self.path)
        with misfits(self.path):
            if state is not None:
                state.load_state_dict(facts["method"])
            if optimizer is not None:
                load_optimizer(optimizer, take(tensors, "optimizer."), facts["optimizer"])
            set_rng_state(device, take(tensors, "rng."), facts["rng"])


def open_run(path: Path | None, config: dict[str, Any], *, resume: bool) -> RunCheckpoint | None:
    """The checkpoint to go on from; None where a run starts from the beginning.

    Args:
        path: of the file; None for a run that is not saved.
        config: what the run depends on, which has to be the checkpoint's.
        resume: whether an existing checkpoint is gone on from.

    Raises:
        CheckpointError: the checkpoint is damaged or of a run with other arguments.
        FileExistsError: there is a checkpoint and ``resume`` is False.
    """
    if path is None or not path.exists():
        return None
    if not resume:
        raise FileExistsError(f"{path} exists; fit(resume=True) goes on from it")
    run = RunCheckpoint(path, load_checkpoint(path, config))
    place = {"first_task": 0, **run.content.position}
    for name in ("task", "epoch", "first_task"):
        if place.get(name, -1) < 0:
            raise CheckpointError(f"{path} has {name} {place.get(name)}, wanted at least 0")
    return run


@contextlib.contextmanager
def misfits(path: Path) -> Iterator[None]:
    """Inside, a checkpoint's parts are taken up: one of another form becomes a sentence.

    Raises:
        CheckpointError: there is one.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        said = f"{type(error).__name__}: {sentence_of(error)}"
        raise CheckpointError(f"{path} does not fit the run: {said}") from None


def save_run(
    path: Path,
    config: dict[str, Any],
    position: tuple[int, int, int],
    net: nn.Module,
    result: Result,
    device: torch.device,
    state: Any,
    optimizer: Optimizer,
) -> None:
    """Write a run's checkpoint in one step that either happens or does not.

    Args:
        path: of the file; its folder is made.
        config: as for `open_run`.
        position: (task, epoch) to go on with, and the network's task that task 0 is.
        net: the network.
        result: what was measured so far.
        device: as for ``RunCheckpoint.restore``.
        state: the method's; saved inside a task.
        optimizer: likewise.

    Raises:
        OSError: the disk is full, ...; the checkpoint before is intact then.
    """
    task, epoch, first = position
    tensors = {f"network.{k}": v for k, v in net.state_dict().items()}
    rng, rng_facts = rng_state(device)
    tensors |= {f"rng.{k}": v for k, v in rng.items()}
    facts = {"result": result.to_dict(), "rng": rng_facts}
    if epoch > 0:
        moments, facts["optimizer"] = optimizer_state(optimizer)
        tensors |= {f"optimizer.{k}": v for k, v in moments.items()}
        facts["method"] = state.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"task": task, "epoch": epoch, "first_task": first}
    save_checkpoint(path, Checkpoint(config, place, tensors, facts))
