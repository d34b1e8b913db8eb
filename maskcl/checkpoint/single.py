"""A checkpoint's own file, written and read by one process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import TypeVar

from maskcl.checkpoint.content import (
    Checkpoint,
    CheckpointError,
    described,
    jsons_of,
    parts_of,
)
from maskcl.checkpoint.packing import packed_names
from maskcl.checkpoint.parts import (
    assembled,
    clear_parts,
    files_of,
    folder_of,
    places_of,
    read_part,
    said_of,
)
from maskcl.checkpoint.pieces import Pieces, Place
from maskcl.reading import MissingError, ReadError
from maskcl.tensor_file import read_tensors, write_tensors
from maskcl.text import printable, sentence_of
from maskcl.validation import ContentError

WHAT = "checkpoint of maskcl"
Read = TypeVar("Read")


def write_named(
    path: str | os.PathLike[str],
    checkpoint: Checkpoint,
    files: dict[str, str],
    pieces: Pieces,
    zeros: list[Place],
) -> None:
    """Write a checkpoint's own file, which names others, and remove what it does not name.

    Args:
        path: of the file.
        checkpoint: whose JSON it holds.
        files: name -> SHA-256, of the parts.
        pieces: what the file holds itself.
        zeros: what is zero.
    """
    metadata, packed = described(checkpoint)
    metadata |= said_of(pieces, zeros)
    if files:
        metadata["parts"] = json.dumps(files)
    tensors = {place.key: tensor for place, tensor in pieces.items()}
    write_tensors(path, tensors | packed, metadata)
    clear_parts(path, files)


def packed_in(name: str, metadata: dict[str, str]) -> set[str]:
    """Names of a checkpoint's tensors that hold numbers of its JSON.

    Raises:
        CheckpointError, ReadError: it is no checkpoint.
    """
    try:
        return packed_names(list(jsons_of(name, metadata).values()))
    except RecursionError as error:
        raise ReadError(f"{name} is damaged: {sentence_of(error)}") from None


def read_whole(path: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint with all its tensors, each verified.

    Raises:
        CheckpointError, ReadError, ContentError: it is none.
    """
    name = printable(os.fspath(path))
    metadata, tensors = read_tensors(path, WHAT)
    parts = parts_of(name, metadata, tensors)
    headers = {key: (t.dtype, tuple(t.shape)) for key, t in tensors.items()}
    places, zeros = places_of(metadata, headers, name)
    pieces = {places[key]: tensor for key, tensor in tensors.items()}
    for file, digest in files_of(metadata, name).items():
        more, blank = read_part(folder_of(path), file, digest)
        pieces |= more
        zeros += blank
    found = assembled(pieces, zeros, name)
    return Checkpoint(parts["config"], parts["position"], found, parts["facts"])


def steadily(path: str | os.PathLike[str], read: Callable[[], Read]) -> Read:
    """What ``read`` gives; once more where another process has put a new checkpoint there.

    Raises:
        CheckpointError: it cannot be read.
    """
    while True:
        stamp = _stamp(path)
        try:
            return read()
        except MissingError as error:
            if _stamp(path) == stamp:
                raise CheckpointError(str(error)) from None
        except (ReadError, ContentError) as error:
            raise CheckpointError(str(error)) from None


def _stamp(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
