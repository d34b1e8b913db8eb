"""Checkpoints of several processes: ``torch.distributed.checkpoint`` on safetensors files.

Its planners say which process writes and reads what of sharded tensors, whatever number of
processes there was; here is where to. Its own files are not used: their index is a pickle, which
runs code when it is read, or is missing, so that nobody sees where a file is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from maskcl.checkpoint.content import Checkpoint, CheckpointError
from maskcl.checkpoint.index import Index
from maskcl.checkpoint.parts import folder_of, write_lasting, write_part
from maskcl.checkpoint.pieces import Place
from maskcl.checkpoint.single import steadily, write_named
from maskcl.collective import portable, together
from maskcl.reading import ReadError
from maskcl.shards import is_sharded

_AS_THEY_ARE = {"flatten_state_dict": False, "flatten_sharded_tensors": False}


def save_shared(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Write what all processes have; each calls it. See `save_checkpoint`."""
    # Always to the same process: what is there already is found again.
    planner = dcp.DefaultSavePlanner(**_AS_THEY_ARE, dedup_save_to_lowest_rank=True)
    with _of_one_process():
        dcp.save(checkpoint.tensors, storage_writer=_Writer(path, checkpoint), planner=planner)


def load_shared(path: str | os.PathLike[str], like: Mapping[str, Tensor]) -> Checkpoint:
    """Read what each process wants; each calls it. See `load_checkpoint`."""
    with together(torch.distributed.get_world_size()):
        index = steadily(path, lambda: Index.read(path))
    state = {name: _empty(places[0], like) for name, places in index.tensors.items()}
    planner = dcp.DefaultLoadPlanner(**_AS_THEY_ARE)
    try:
        with _of_one_process():
            dcp.load(state, storage_reader=_Reader(index), planner=planner)
    except ReadError as error:
        raise CheckpointError(str(error)) from None
    return replace(index.checkpoint, tensors=state)


def _empty(place: Place, like: Mapping[str, Tensor]) -> Tensor:
    """Where a tensor is read to: sharded as it is wanted, else all of it on the CPU."""
    wanted = like.get(place.name, like.get(f"{place.name.rpartition('.')[0]}."))
    if wanted is None or not is_sharded(wanted) or tuple(wanted.shape) != place.whole:
        return torch.empty(place.whole, dtype=place.dtype)
    return torch.empty_like(wanted, dtype=place.dtype, requires_grad=False)


@contextmanager
def _of_one_process() -> Iterator[None]:
    """Inside, what one process raises is raised in all, as it was."""
    try:
        yield
    except CheckpointException as error:
        failed: dict[int, Any] = error.failures
        raise failed[min(failed)][0] from None


class _Writer(StorageWriter):
    """Each process's pieces into files of its own, and the checkpoint's file once all are there."""

    def __init__(self, path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
        self._path, self._checkpoint = Path(path), checkpoint
        self._folder = folder_of(path)

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Each with its process's number."""
        return [replace(plan, storage_data=rank) for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's files; their names and SHA-256."""
        try:
            given: dict[Place, Any] = {_place_of(i): planner.resolve_data(i) for i in plan.items}
            pieces = {place: tensor.detach() for place, tensor in given.items()}
            files, rest, zeros = write_lasting(self._folder, pieces, self._checkpoint.lasting)
            if rest or zeros:
                group = f"process-{plan.storage_data}"
                files |= dict([write_part(self._folder, group, rest, zeros)])
        except Exception as error:
            raise portable(error) from None  # type: ignore[misc]
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(MetadataIndex(name), 0, sha) for name, sha in files.items()])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the file that names all others; of the first process."""
        files = {one.index.fqn: one.storage_data for found in results for one in found}
        write_named(self._path, self._checkpoint, files, {}, [])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Nobody asks."""
        return False


def _place_of(item: Any) -> Place:
    data = item.tensor_data
    if data is None:
        raise TypeError(f"{item.index.fqn} is no tensor, which a checkpoint cannot hold")
    whole, offsets, sizes = map(tuple, (data.size, data.chunk.offsets, data.chunk.sizes))
    return Place(item.index.fqn, whole, offsets, sizes, data.properties.dtype)


class _Reader(StorageReader):
    """What a process wants of the pieces that there are."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing."""

    def read_metadata(self) -> Metadata:  # type: ignore[override]
        """Tensors and their pieces."""
        return Metadata({
            name: TensorStorageMetadata(
                TensorProperties(dtype=places[0].dtype),
                torch.Size(places[0].whole),
                [
                    ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.sizes))
                    for p in places
                ],
            )
            for name, places in self._index.tensors.items()
        })  # fmt: skip

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read this process's share, and verify its share of the files."""
        try:
            self._index.verify(torch.distributed.get_rank(), torch.distributed.get_world_size())
            for item, values in self._index.slices(self._wanted(plan)):
                target = planner.resolve_tensor(item)
                target.zero_() if values is None else target.copy_(values)
        except Exception as error:
            raise portable(error) from None  # type: ignore[misc]
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _wanted(self, plan: LoadPlan) -> dict[Place, list[tuple[Any, tuple[slice, ...]]]]:
        """By piece, what is read of it."""
        pieces = [place for found in self._index.tensors.values() for place in found]
        at = {(place.name, place.offsets): place for place in pieces if 0 not in place.sizes}
        wanted: dict[Place, list[tuple[Any, tuple[slice, ...]]]] = {}
        for item in plan.items:
            if 0 not in item.lengths:
                place = at[item.storage_index.fqn, tuple(item.storage_index.offset or ())]
                ends = zip(item.storage_offsets, item.lengths, strict=True)
                cut = tuple(slice(start, start + size) for start, size in ends)
                wanted.setdefault(place, []).append((item, cut))
        return wanted

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Nobody asks."""
        return False
