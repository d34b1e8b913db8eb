"""A run's checkpoint: everything that it takes to go on as if nothing had happened."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskcl.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_config,
    load_checkpoint,
    load_network,
    load_optimizer,
    misfits,
    network_state,
    optimizer_state,
    save_checkpoint,
    take,
)
from maskcl.randomness import set_rng_state
from maskcl.training.plan import Running
from maskcl.training.result import Result

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork

# Parts of the configuration that are known once a task has begun.
MADE = ("optimizer", "scheduler")


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

    @property
    def made(self) -> dict[str, Any]:
        """What described the optimizer and scheduler; empty where no task was begun."""
        return {key: value for key, value in self.content.config.items() if key in MADE}

    def check_made(self, made: dict[str, Any]) -> None:
        """Raise CheckpointError unless this describes what the run's tasks were trained with."""
        found = self.made
        if found:  # a run on another's network begins with no task trained
            check_config(self.path, found, made)

    def restore(
        self,
        net: nn.Module,
        device: torch.device,
        run: Running | None = None,
        scaler: Any = None,
        rank: int = 0,
    ) -> None:
        """Put the network, what exists only while a task trains, and all chance back.

        Args:
            net: of the run; its task is begun if one was in training.
            device: whose generator is restored beside the CPU's.
            run: the task in training, where one was.
            scaler: of the loss.
            rank: of this process, whose generators are put back.

        Raises:
            CheckpointError: something does not fit.
        """
        tensors, facts = self.content.tensors, self.content.facts
        load_network(net, tensors, self.path)
        with misfits(self.path):
            if run is not None:
                run.state.load_state_dict(facts["method"])
                load_optimizer(run.optimizer, take(tensors, "optimizer."), facts["optimizer"])
                if run.schedule is not None:
                    schedule = take(tensors, "scheduler.")
                    run.schedule.load_state_dict(schedule, facts.get("scheduler"))
                if run.best is not None:
                    run.best.load_state_dict(take(tensors, "best."), facts.get("best", {}))
            if scaler is not None and "scaler" in facts:
                scaler.load_state_dict(facts["scaler"])
            chance = _chance_of(rank)
            # A run that goes on from another's network has no more than the first one's.
            if rank == 0 or chance in facts:
                set_rng_state(device, take(tensors, f"{chance}."), facts[chance])


def _chance_of(rank: int) -> str:
    """Where a process's generators are in a checkpoint."""
    return f"rng{rank or ''}"


def put_back(net: TaskNetwork, state: dict[str, Tensor]) -> None:
    """Give a network the state that it had before a run was taken up that is another's."""
    if net.training_task is not None:
        net.forget_task(net.training_task)
    with contextlib.suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that finished tasks are not any more
        net.load_state_dict(state)  # refused by one that has grown: it stays the run's


def open_run(path: Path | None, config: dict[str, Any], *, resume: bool) -> RunCheckpoint | None:
    """The checkpoint to go on from; None where a run starts from the beginning.

    Args:
        path: of the file; None for a run that is not saved.
        config: what the run depends on, which has to be the checkpoint's, but for ``MADE``.
        resume: whether an existing checkpoint is gone on from.

    Raises:
        CheckpointError: the checkpoint is damaged or of a run with other arguments.
        FileExistsError: there is a checkpoint and ``resume`` is False.
    """
    if path is None or not path.exists():
        return None
    if not resume:
        raise FileExistsError(f"{path} exists; fit(resume=True) goes on from it")
    saved = RunCheckpoint(path, load_checkpoint(path))
    found = {key: value for key, value in saved.content.config.items() if key not in MADE}
    shared = "processes"  # it says more than the batch size that it divides
    check_config(path, {shared: found.get(shared)}, {shared: config.get(shared)})
    check_config(path, found, config)
    place = {"first_task": 0, **saved.content.position}
    for name in ("task", "epoch", "first_task"):
        if place.get(name, -1) < 0:
            raise CheckpointError(f"{path} has {name} {place.get(name)}, wanted at least 0")
    return saved


def save_run(
    path: Path,
    config: dict[str, Any],
    position: tuple[int, int, int],
    net: nn.Module,
    result: Result,
    chance: Sequence[tuple[dict[str, Tensor], dict[str, Any]]],
    run: Running,
    scaler: Any = None,
) -> None:
    """Write a run's checkpoint in one step that either happens or does not.

    Every process that shares the run has to call it.

    Args:
        path: of the file; its folder is made.
        config: as for `open_run`, and what ``RunCheckpoint.check_made`` checks.
        position: (task, epoch) to go on with, and the network's task that task 0 is.
        net: the network.
        result: what was measured so far.
        chance: each process's `rng_state`.
        run: the task in training; saved inside it.
        scaler: of the loss.

    Raises:
        OSError: the disk is full, ...; the checkpoint before is intact then.
    """
    task, epoch, first = position
    tensors, lasting = network_state(net)
    facts: dict[str, Any] = {"result": result.to_facts()}
    parts: dict[str, dict[str, Tensor]] = {}
    for rank, state in enumerate(chance):
        parts[_chance_of(rank)], facts[_chance_of(rank)] = state
    if epoch > 0:
        parts["optimizer"], facts["optimizer"] = optimizer_state(run.optimizer)
        facts["method"] = run.state.state_dict()
        if run.schedule is not None:
            parts["scheduler"], facts["scheduler"] = run.schedule.state_dict()
        if run.best is not None:
            parts["best"], facts["best"] = run.best.state_dict()
    if scaler is not None and scaler.is_enabled():
        facts["scaler"] = scaler.state_dict()
    tensors |= {f"{part}.{k}": v for part, found in parts.items() for k, v in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    place = {"task": task, "epoch": epoch, "first_task": first}
    content = Checkpoint(config, place, tensors, facts, lasting)
    save_checkpoint(path, content, shared=True if len(chance) > 1 else None)
