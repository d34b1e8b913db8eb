"""Checkpoints: one safetensors file whose metadata holds the JSON, so that the two cannot differ.

Nothing is unpickled. A file is written beside its name, flushed to the disk and renamed, so that at
every moment the name stands for a whole checkpoint, the old one or the new one. From version 2 on
it holds a SHA-256 of all its bytes, which is verified when it is read.
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

from maskcl.reading import ReadError, parse_json
from maskcl.tensor_file import has_digest, read_metadata, read_tensors, write_tensors
from maskcl.text import printable
from maskcl.validation import ContentError, check

FORMAT = "maskcl-checkpoint"
VERSION = 2
_KNOWN = ("1", "2")  # those of version 1 have no SHA-256

_FORMS = {"config": {str: Any}, "position": {str: int}, "facts": {str: Any}}


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
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "config": json.dumps(checkpoint.config),
        "position": json.dumps(checkpoint.position),
        "facts": json.dumps(checkpoint.facts),
    }
    write_tensors(path, checkpoint.tensors, metadata)


def load_checkpoint(
    path: str | os.PathLike[str], config: dict[str, Any] | None = None
) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file.
        config: what this run depends on; where given it must be the checkpoint's.

    Raises:
        CheckpointError: there is no such file, it is truncated, altered or something else, or it is
            of a run with another configuration.
    """
    name = printable(os.fspath(path))
    try:
        metadata, tensors = read_tensors(path, "checkpoint of maskcl")
        parts = _parts(name, metadata)
    except (ReadError, ContentError) as error:
        raise CheckpointError(str(error)) from None
    checkpoint = Checkpoint(parts["config"], parts["position"], tensors, parts["facts"])
    if config is not None:
        check_config(name, checkpoint.config, config)
    return checkpoint


def load_facts(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, int], dict[str, Any]]:
    """A checkpoint's config, position and facts; its tensors are not read, its digest neither.

    Raises:
        CheckpointError: there is no such file, or it is something else.
    """
    name = printable(os.fspath(path))
    try:
        parts = _parts(name, read_metadata(path, "checkpoint of maskcl"))
    except (ReadError, ContentError) as error:
        raise CheckpointError(str(error)) from None
    return parts["config"], parts["position"], parts["facts"]


def _parts(name: str, metadata: dict[str, str]) -> dict[str, Any]:
    _check_format(name, metadata)
    parts = {}
    for key, form in _FORMS.items():
        if key not in metadata:
            raise ReadError(f"{name} is damaged or no checkpoint of maskcl: it has no {key}")
        parts[key] = parse_json(metadata[key], f"{name}: {key}", nan=True)
        check(parts[key], form, name, key)
    return parts


def _check_format(name: str, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{name} is a safetensors file but no checkpoint of maskcl")
    version = metadata.get("version")
    if version not in _KNOWN:
        found, known = printable(version), " and ".join(_KNOWN)
        raise CheckpointError(f"{name} has format version {found}, this maskcl reads {known}")
    if version != "1" and not has_digest(metadata):
        raise CheckpointError(f"{name} is damaged: its SHA-256 is missing")


def check_config(path: Any, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise CheckpointError where a checkpoint is of a run with another configuration."""
    wanted = json.loads(json.dumps(wanted))
    for key in sorted(found.keys() | wanted.keys()):
        old, new = json.dumps(found.get(key)), json.dumps(wanted.get(key))
        if old != new:
            what = f"{printable(key)} {printable(old)}"
            raise CheckpointError(f"{path} is of a run with {what}, this run has {printable(new)}")


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
