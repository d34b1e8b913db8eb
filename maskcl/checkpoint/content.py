"""What a checkpoint holds, and what its file's metadata says of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from maskcl.checkpoint.packing import pack, packed_names, unpack
from maskcl.checkpoint.pieces import Lasting
from maskcl.reading import ReadError, parse_json
from maskcl.tensor_file import has_digest
from maskcl.text import printable, sentence_of
from maskcl.validation import check

FORMAT = "maskcl-checkpoint"
VERSION = 3
# Those of version 1 have no SHA-256; up to version 2 all is in one file, numbers in the JSON.
KNOWN = ("1", "2", "3")

_FORMS = {"config": {str: Any}, "position": {str: int}, "facts": {str: Any}}


class CheckpointError(ValueError):
    """The file is no checkpoint of this run; one sentence says why."""


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        config: what the run depends on; a run with another may not resume from it.
        position: JSON object, where the run stands.
        tensors: by name; DTensors too, see `save_checkpoint`.
        facts: JSON object, everything else; arrays of float64 or int64 in it come back as lists.
        lasting: what of the tensors stays as it is for longer than one checkpoint, by group: it is
            written to files of its own, once. Name -> rows along the first dimension, None for all.
            Empty in what `load_checkpoint` returns.
    """

    config: dict[str, Any]
    position: dict[str, int]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    lasting: Lasting = field(default_factory=dict)


def described(checkpoint: Checkpoint) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata of a checkpoint's file, and the tensors that hold its long lists of numbers.

    Raises:
        TypeError: something is of a kind that JSON does not know.
    """
    packed = dict(checkpoint.tensors)  # whose names are taken
    metadata = {"format": FORMAT, "version": str(VERSION)}
    for key in _FORMS:
        metadata[key] = json.dumps(pack(getattr(checkpoint, key), key, packed))
    return metadata, {n: t for n, t in packed.items() if n not in checkpoint.tensors}


def parts_of(name: str, metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Config, position and facts; their tensors are taken out of those given.

    Args:
        name: of the file, for errors.
        metadata: of the file.
        tensors: of the file.

    Raises:
        CheckpointError, ReadError, ContentError: it is no checkpoint.
    """
    found = {}
    names: set[str] = set()
    for key, value in jsons_of(name, metadata).items():
        try:
            names |= packed_names(value)
            found[key] = unpack(value, tensors)
        except (ValueError, RecursionError) as error:
            raise ReadError(f"{name} is damaged: {key}: {sentence_of(error)}") from None
        check(found[key], _FORMS[key], name, key)
    for packed in names:
        tensors.pop(packed, None)
    return found


def jsons_of(name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Config, position and facts as the file has them, packed.

    Raises:
        CheckpointError, ReadError: it is no checkpoint.
    """
    _check_format(name, metadata)
    found = {}
    for key in _FORMS:
        if key not in metadata:
            raise ReadError(f"{name} is damaged or no checkpoint of maskcl: it has no {key}")
        found[key] = parse_json(metadata[key], f"{name}: {key}", nan=True)
    return found


def _check_format(name: str, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{name} is a safetensors file but no checkpoint of maskcl")
    version = metadata.get("version")
    if version not in KNOWN:
        found, known = printable(version), f"{', '.join(KNOWN[:-1])} and {KNOWN[-1]}"
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


@contextlib.contextmanager
def misfits(path: Any) -> Iterator[None]:
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
