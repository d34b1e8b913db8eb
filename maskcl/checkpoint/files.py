"""Checkpoints written and read, by one process or by all that share a network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maskcl.checkpoint.content import Checkpoint, CheckpointError, check_config, parts_of
from maskcl.checkpoint.parts import clear_parts, files_of, folder_of, write_lasting
from maskcl.checkpoint.pieces import Place
from maskcl.checkpoint.single import WHAT, packed_in, read_whole, steadily, write_named
from maskcl.reading import ReadError
from maskcl.shards import is_sharded
from maskcl.tensor_file import read_header, read_some
from maskcl.text import printable
from maskcl.validation import ContentError


def save_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, *, shared: bool | None = None
) -> None:
    """Write the checkpoint under its name in one step that either happens or does not.

    Where a tensor is sharded (a DTensor, as under ``fully_shard``), every process has to call it,
    and each writes what it has, by ``torch.distributed.checkpoint``, into files of the folder
    ``checkpoint.parts`` beside ``checkpoint.safetensors``, which all processes see. What is not
    sharded is written by the first process that has the name, once. Config, position and facts are
    the first process's. An error of one process is raised in all.

    Args:
        path: the file, which ends in ``.safetensors``.
        checkpoint: what is written.
        shared: whether the processes share what is written; None: where a tensor is sharded.

    Raises:
        OSError: the disk is full, the directory absent, ...; the old checkpoint is intact then.
        TypeError: something is of a kind that no checkpoint holds.
    """
    if any(map(is_sharded, checkpoint.tensors.values())) if shared is None else shared:
        from maskcl.checkpoint.sharded import save_shared

        save_shared(path, checkpoint)
        return
    pieces = {
        Place.all_of(name, tensor.shape, tensor.dtype): tensor
        for name, tensor in checkpoint.tensors.items()
    }
    files, rest, zeros = write_lasting(folder_of(path), pieces, checkpoint.lasting)
    write_named(path, checkpoint, files, rest, zeros)


def load_checkpoint(
    path: str | os.PathLike[str],
    config: dict[str, Any] | None = None,
    *,
    like: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Read a checkpoint, however many processes wrote it, onto the CPU.

    Args:
        path: the file.
        config: what this run depends on; where given it must be the checkpoint's.
        like: by name, tensors as this process wants them. Where one is sharded, every process has
            to call it with the same names, and reads into such DTensors only what it has of them.
            A name that ends in a dot stands for all that begin so and have the tensor's shape.

    Raises:
        CheckpointError: there is no such file, it is truncated, altered or something else, a part
            of it is, or it is of a run with another configuration.
    """
    name = printable(os.fspath(path))
    if like is not None and any(map(is_sharded, like.values())):
        from maskcl.checkpoint.sharded import load_shared

        checkpoint = load_shared(path, like)
    else:
        checkpoint = steadily(path, lambda: read_whole(path))
    if config is not None:
        check_config(name, checkpoint.config, config)
    return checkpoint


def load_facts(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, int], dict[str, Any]]:
    """A checkpoint's config, position and facts; what else it holds is neither read nor verified.

    Raises:
        CheckpointError: there is no such file, or it is something else.
    """
    name = printable(os.fspath(path))
    try:
        parts = parts_of(name, *read_some(path, WHAT, lambda said, _: packed_in(name, said)))
    except (ReadError, ContentError) as error:
        raise CheckpointError(str(error)) from None
    return parts["config"], parts["position"], parts["facts"]


def remove_unnamed(path: str | os.PathLike[str]) -> None:
    """Remove parts beside a checkpoint that it does not name; only who writes there may.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    name = printable(os.fspath(path))
    try:
        metadata, _ = read_header(path, WHAT)
        clear_parts(path, files_of(metadata, name))
    except (ReadError, ContentError) as error:
        raise CheckpointError(str(error)) from None
