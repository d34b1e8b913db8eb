"""Where a checkpoint's tensors are, without reading them: for processes that each want some."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from maskcl.checkpoint.content import Checkpoint, parts_of
from maskcl.checkpoint.parts import (
    PART,
    check_part,
    files_of,
    folder_of,
    missing,
    places_of,
)
from maskcl.checkpoint.pieces import Place, check_covered
from maskcl.checkpoint.single import WHAT, packed_in
from maskcl.tensor_file import open_tensors, read_header, read_some
from maskcl.text import printable

Item = TypeVar("Item")


@dataclass(frozen=True)
class Index:
    """What a checkpoint's files say of themselves.

    Attributes:
        checkpoint: without tensors.
        tensors: the pieces of each; they are all of it.
        places: file and key of each piece; one that is not there is all zero.
        files: all of them.
    """

    checkpoint: Checkpoint
    tensors: dict[str, list[Place]]
    places: dict[Place, tuple[Path, str]]
    files: list[Path]

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Index:
        """From the headers of all files; no SHA-256 is verified, but that files are those named.

        Raises:
            CheckpointError, ReadError, ContentError: they are no checkpoint.
        """
        path, name = Path(path), printable(os.fspath(path))
        parts = parts_of(name, *read_some(path, WHAT, lambda said, _: packed_in(name, said)))
        metadata, headers = read_header(path, WHAT)
        packed = packed_in(name, metadata)
        own, zeros = places_of(
            metadata, {key: found for key, found in headers.items() if key not in packed}, name
        )
        places = {place: (path, key) for key, place in own.items()}
        files = [path]
        for file, digest in files_of(metadata, name).items():
            part = folder_of(path) / file
            with missing(part):
                metadata, headers = read_header(part, PART)
            check_part(part, metadata, digest)
            more, blank = places_of(metadata, headers, printable(part))
            places |= {place: (part, key) for key, place in more.items()}
            zeros += blank
            files.append(part)
        checkpoint = Checkpoint(parts["config"], parts["position"], facts=parts["facts"])
        return cls(checkpoint, check_covered([*places, *zeros], name), places, files)

    def verify(self, rank: int, processes: int) -> None:
        """Verify the SHA-256 of one process's share of the files.

        Raises:
            ReadError: one is altered.
        """
        for file in self.files[rank::processes]:
            read_header(file, WHAT if file == self.files[0] else PART, verify=True)

    def slices(
        self, wanted: Mapping[Place, Iterable[tuple[Item, tuple[slice, ...]]]]
    ) -> Iterator[tuple[Item, Tensor | None]]:
        """Parts of pieces, each with what it was asked for; None for zeros."""
        by_file: dict[Path, list[Place]] = {}
        for place, items in wanted.items():
            if place in self.places:
                by_file.setdefault(self.places[place][0], []).append(place)
            else:
                yield from ((item, None) for item, _ in items)
        for file, places in by_file.items():
            with open_tensors(file, PART) as read:
                for place in places:
                    for item, cut in wanted[place]:
                        yield item, read(self.places[place][1], cut)
