"""Checkpoints: one safetensors file whose metadata holds the JSON, so that the two cannot differ.

Nothing is unpickled. A file is written beside its name, flushed to the disk and renamed, so that at
every moment the name stands for a whole checkpoint, the old one or the new one.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.files import replacing

FORMAT = "maskcl-checkpoint"
VERSION = 1


class CheckpointError(ValueError):
    """The file is no checkpoint of this run; one sentence says why."""


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        config: what the run depends on; a run with another may not resume from it.
        position: JSON object, where the run stands.
        tensors: by name.
        facts: JSON object, everything else.
    """

    config: dict[str, Any]
    position: dict[str, int]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write the checkpoint under its name in one step that either happens or does not.

    Raises:
        OSError: the disk is full, the directory absent, ...; the old file is intact then.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(checkpoint.config),
        "position": json.dumps(checkpoint.position),
        "facts": json.dumps(checkpoint.facts),
    }
    # Copies, as safetensors refuses tensors that share memory.
    tensors = {
        name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, t in checkpoint.tensors.items()
    }
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata)


def load_checkpoint(
    path: str | os.PathLike[str], config: dict[str, Any] | None = None
) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file.
        config: what this run depends on; where given it must be the checkpoint's.

    Raises:
        CheckpointError: there is no such file, it is truncated, it is something else, or it is of
            a run with another configuration.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            _check_format(path, metadata)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
        parts = {key: json.loads(metadata[key]) for key in ("config", "position", "facts")}
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint of maskcl ({error})") from None
    checkpoint = Checkpoint(parts["config"], parts["position"], tensors, parts["facts"])
    if config is not None:
        _check_config(path, checkpoint.config, config)
    return checkpoint


def load_facts(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, int], dict[str, Any]]:
    """A checkpoint's config, position and facts; its tensors are not read.

    Raises:
        CheckpointError: there is no such file, or it is something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
        _check_format(path, metadata)
        config, position, facts = (json.loads(metadata[k]) for k in ("config", "position", "facts"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is damaged or no checkpoint of maskcl ({error})") from None
    return config, position, facts


def _check_format(path: Any, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is a safetensors file but no checkpoint of maskcl")
    if metadata.get("version") != str(VERSION):
        found = metadata.get("version")
        raise CheckpointError(f"{path} has format version {found}, this maskcl reads {VERSION}")


def _check_config(path: Any, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))
    for key in sorted(found.keys() | wanted.keys()):
        old, new = json.dumps(found.get(key)), json.dumps(wanted.get(key))
        if old != new:
            raise CheckpointError(f"{path} is of a run with {key} {old}, this run has {new}")


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
    net.load_state_dict(found)


def take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name starts with the prefix, without it."""
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and a JSON object."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}

    def split(prefix: str, values: dict[Any, Any]) -> dict[str, Any]:
        tensors.update({f"{prefix}.{k}": v for k, v in values.items() if isinstance(v, Tensor)})
        return {str(k): v for k, v in values.items() if not isinstance(v, Tensor)}

    facts = {
        "state": {str(i): split(f"state.{i}", values) for i, values in state["state"].items()},
        "groups": [split(f"group.{i}", g) for i, g in enumerate(state["param_groups"])],
    }
    return tensors, facts


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Put `optimizer_state`'s result into an optimizer of the same kind and parameters.

    Raises:
        CheckpointError: it is of an optimizer with other parameters.
    """
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in facts["state"].items()}
    groups = [dict(group) for group in facts["groups"]]
    for name, tensor in tensors.items():
        kind, index, key = name.split(".", 2)
        (state if kind == "state" else groups)[int(index)][key] = tensor  # type: ignore[index]
    for fresh, group in zip(optimizer.param_groups, groups, strict=False):
        # JSON has no tuples.
        group.update({k: tuple(group[k]) for k, v in fresh.items() if isinstance(v, tuple)})
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's optimizer does not fit: {error}") from None


def describe_optimizer(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The hyper-parameters of each group; what JSON does not know as text."""
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    plain = (int, float, str, type(None))
    return [{k: v if isinstance(v, plain) else str(v) for k, v in g.items()} for g in groups]
