"""Loops of one's own, saved and gone on with to the same bits, also inside a task.

Networks may be sharded by ``fully_shard``; then every process calls these functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.checkpoint.content import Checkpoint, CheckpointError, check_config, misfits
from maskcl.checkpoint.files import load_checkpoint, load_facts, save_checkpoint
from maskcl.checkpoint.networks import give_up, load_network, network_state, take
from maskcl.checkpoint.optimizers import load_optimizer, optimizer_state
from maskcl.collective import everyones, processes, together
from maskcl.randomness import rng_state, set_rng_state
from maskcl.text import printable
from maskcl.validation import ContentError, check

_FORM = {
    "facts": {str: Any},
    "rng": [{str: Any}],
    "method?": {"task": int},
    "optimizer?": {"state": {str: Any}, "groups": [{str: Any}]},
}


@dataclass(frozen=True)
class Resumed:
    """Where a loop goes on.

    Attributes:
        position: as it was saved.
        facts: likewise.
        state: the method's, of the task in training; None between tasks.
        optimizer: likewise; ``method.protect`` comes next.
    """

    position: dict[str, int]
    facts: dict[str, Any]
    state: Any = None
    optimizer: Optimizer | None = None


def save_training(
    path: str | os.PathLike[str],
    net: nn.Module,
    position: dict[str, int],
    state: Any = None,
    optimizer: Optimizer | None = None,
    *,
    config: dict[str, Any] | None = None,
    facts: dict[str, Any] | None = None,
) -> None:
    """Save a network, the task that is in training, and every process's random generators.

    Args:
        path: the file, which ends in ``.safetensors``; replaced in one step.
        net: a network of tasks, or any module; sharded or not.
        position: where the loop stands: numbers by name.
        state: what ``method.begin_task`` gave, inside a task.
        optimizer: of the task, inside one.
        config: what the loop depends on; `load_training` compares it.
        facts: JSON object, for the caller.

    Raises:
        OSError: it cannot be written; the checkpoint before is intact then, in all processes.
        TypeError: something is of a kind that no checkpoint holds.
    """
    tensors, lasting = network_state(net)
    content: dict[str, Any] = {"facts": facts or {}}
    if (state is None) != (optimizer is None):
        raise TypeError(
            "save_training: inside a task wanted state and optimizer, got only one of them"
        )
    if optimizer is not None:
        found, content["optimizer"] = optimizer_state(optimizer)
        tensors |= {f"optimizer.{name}": tensor for name, tensor in found.items()}
    if state is not None:
        content["method"] = state.state_dict()
    count, rank = processes()
    own, content["rng"] = rng_state(_device(net))
    tensors |= {f"rng{rank}.{name}": tensor for name, tensor in own.items()}
    content["rng"] = everyones(count, content["rng"])
    checkpoint = Checkpoint(config or {}, position, tensors, content, lasting)
    save_checkpoint(path, checkpoint, shared=True if count > 1 else None)


def load_training(
    path: str | os.PathLike[str],
    net: nn.Module,
    method: Any = None,
    optimizer_fn: Callable[[list[dict[str, Any]]], Optimizer] | None = None,
    *,
    config: dict[str, Any] | None = None,
    seed: int = 0,
) -> Resumed:
    """Take up what `save_training` wrote, by any number of processes, sharded or not.

    Random generators go on where they were if as many processes go on as there were.

    Args:
        path: the file.
        net: made as the saved one was; it may be sharded otherwise.
        method: of a loop that was saved inside a task.
        optimizer_fn: likewise, parameter groups -> a new optimizer.
        config: what the loop depends on; where given it must be the checkpoint's.
        seed: as ``method.begin_task`` was given it.

    Raises:
        CheckpointError: it is no such checkpoint, damaged or of another network, task or config.
        TypeError: it was saved inside a task, and no method or optimizer is given.
    """
    name = printable(os.fspath(path))
    count, rank = processes()
    with together(count):
        found, position, content = load_facts(path)
        if config is not None:
            check_config(name, found, config)
        begun = _task_of(name, content)
        if begun is not None and (method is None or optimizer_fn is None):
            raise TypeError(
                f"load_training: {name} was saved inside task {begun}: wanted method and"
                " optimizer_fn"
            )
    with together(count), misfits(name):
        _give_up_training(net, begun)
        begin = _Beginning(net, method, optimizer_fn, begun, seed)
        like = network_state(net)[0] | begin.like()
    with together(count):
        saved = load_checkpoint(path, like=like)
    with together(count), misfits(name):
        load_network(net, saved.tensors, name)
        if begun is not None:
            # What begins is as new; the interrupted task was not.
            begin = _Beginning(net, method, optimizer_fn, begun, seed)
            load_network(net, saved.tensors, name)
            begin.state.load_state_dict(content["method"])
            load_optimizer(begin.optimizer, take(saved.tensors, "optimizer."), content["optimizer"])
        if len(content["rng"]) == count:
            own = take(saved.tensors, f"rng{rank}.")
            set_rng_state(_device(net), own, content["rng"][rank])
    return Resumed(position, content["facts"], begin.state, begin.optimizer)


class _Beginning:
    """A task that begins, to be taken up in the middle; nothing, of a loop between tasks."""

    def __init__(self, net: Any, method: Any, make: Any, task: int | None, seed: int) -> None:
        self.state: Any = None
        self.optimizer: Any = None
        if task is not None:
            self.state = method.begin_task(net, task, seed=seed)
            self.optimizer = make(method.parameter_groups(net, task))

    def like(self) -> dict[str, Tensor]:
        """The optimizer's states are sharded as its parameters are."""
        groups = () if self.optimizer is None else self.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        return {f"optimizer.state.{at}.": p for at, p in enumerate(parameters)}


def _task_of(name: str, content: dict[str, Any]) -> int | None:
    """The task in training; None where there was none.

    Raises:
        CheckpointError: the facts are not of `save_training`.
    """
    try:
        check(content, _FORM, name, "facts")
    except ContentError as error:
        raise CheckpointError(str(error)) from None
    return content["method"]["task"] if "method" in content else None


def _give_up_training(net: Any, task: int | None) -> None:
    training = getattr(net, "training_task", None)
    if task is not None:
        give_up(net, task)
    elif training is not None:
        net.forget_task(training)


def _device(net: nn.Module) -> torch.device:
    return next((p.device for p in net.parameters()), torch.device("cpu"))
