"""Files that a checkpoint is made of beside its own: named by their content, written once.

They lie in a folder beside the checkpoint, ``checkpoint.parts`` for ``checkpoint.safetensors``, and
the checkpoint says which they are and the SHA-256 of each. A file is written before a checkpoint
names it and removed when none does any more, so that at every moment the checkpoint's own file,
which is replaced in one step, stands for a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from maskcl.checkpoint.pieces import Lasting, Pieces, Place, check_covered, grouped
from maskcl.files import remove_temporaries
from maskcl.reading import MissingError, ReadError, parse_json
from maskcl.tensor_file import DIGEST, digest_of, read_tensors, write_tensors
from maskcl.text import printable
from maskcl.validation import check

PART = "part of a checkpoint of maskcl"
# A group of fewer bytes stays in the checkpoint's own file, but for the base.
LEAST = 1 << 16
BASE = "base"

_FORMAT = {"format": "maskcl-part", "version": "1"}
Headers = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def folder_of(path: str | os.PathLike[str]) -> Path:
    """Where the parts of a checkpoint lie."""
    path = Path(path)
    stem = path.stem if path.suffix == ".safetensors" else path.name
    return path.parent / f"{stem}.parts"


def said_of(pieces: Iterable[Place], zeros: Iterable[Place]) -> dict[str, str]:
    """What a file's metadata says of its pieces that are not all of a tensor, and of zeros."""
    partial = [place.to_json() for place in pieces if place.key != place.name]
    lists = {"pieces": partial, "zeros": [place.to_json() for place in zeros]}
    return {key: json.dumps(found) for key, found in lists.items() if found}


def write_lasting(
    folder: Path, pieces: Pieces, lasting: Lasting
) -> tuple[dict[str, str], Pieces, list[Place]]:
    """Write what lasts, where it is not written yet.

    Returns:
        The files' names with their SHA-256, what is in none of them, and what is zero.
    """
    groups, rest, zeros = grouped(pieces, lasting)
    files: dict[str, str] = {}
    for group, found in groups.items():
        if group != BASE and sum(tensor.nbytes for tensor in found.values()) < LEAST:
            rest |= found
        else:
            files |= dict([write_part(folder, group, found)])
    return files, rest, zeros


def write_part(
    folder: Path, group: str, pieces: Pieces, zeros: Iterable[Place] = ()
) -> tuple[str, str]:
    """Write a file, where there is none with this content; its name and SHA-256.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {place.key: tensor for place, tensor in pieces.items()}
    metadata = _FORMAT | said_of(pieces, zeros)
    digest = digest_of(tensors, metadata)
    file = f"{group}-{digest[:32]}.safetensors"
    if not (folder / file).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / file, tensors, metadata)
    return file, digest


def clear_parts(path: str | os.PathLike[str], named: Iterable[str]) -> None:
    """Remove what no checkpoint names any more, after one was written; only its writer may."""
    folder, kept = folder_of(path), set(named)
    if not folder.is_dir():
        return
    remove_temporaries(folder)
    for file in folder.glob("*.safetensors"):
        if file.name not in kept:
            with contextlib.suppress(OSError):
                file.unlink()
    with contextlib.suppress(OSError):  # something is in it
        folder.rmdir()


def files_of(metadata: Mapping[str, str], where: str) -> dict[str, str]:
    """The files that a checkpoint names, with their SHA-256.

    Raises:
        ReadError, ContentError: it names them in another form.
    """
    files = parse_json(metadata.get("parts", "{}"), f"{where}: parts")
    check(files, {str: str}, where, "parts")
    for file in files:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ReadError(f"{where} is damaged: {printable(file)} is no name of a part")
    return dict(files)


def places_of(
    metadata: Mapping[str, str], headers: Headers, where: str
) -> tuple[dict[str, Place], list[Place]]:
    """What a file holds, by key, and what it says is zero.

    Raises:
        ReadError: the two contradict each other.
    """
    found = {}
    for key in ("pieces", "zeros"):
        try:
            said = parse_json(metadata.get(key, "[]"), where)
            found[key] = [Place.from_json(value) for value in said]
        except (TypeError, ValueError, KeyError):
            raise ReadError(f"{where} is damaged: its {key} are none") from None
    partial = {place.key: place for place in found["pieces"]}
    places = {
        key: partial.get(key, Place.all_of(key, shape, dtype))
        for key, (dtype, shape) in headers.items()
    }
    for key, place in places.items():
        if (place.dtype, place.sizes) != headers[key]:
            raise ReadError(f"{where} is damaged: {printable(key)} is not what it says")
    return places, found["zeros"]


def read_part(folder: Path, file: str, digest: str) -> tuple[Pieces, list[Place]]:
    """A part's pieces, and what it says is zero; its SHA-256 is verified.

    Raises:
        ReadError: it is missing, damaged, or another file than the checkpoint names.
    """
    with missing(folder / file):
        metadata, tensors = read_tensors(folder / file, PART)
    check_part(folder / file, metadata, digest)
    headers = {key: (t.dtype, tuple(t.shape)) for key, t in tensors.items()}
    places, zeros = places_of(metadata, headers, printable(folder / file))
    return {places[key]: tensor for key, tensor in tensors.items()}, zeros


@contextlib.contextmanager
def missing(path: Path) -> Iterator[None]:
    """Inside, a part is read: that it is not there is a sentence of its own.

    Raises:
        MissingError: it is not there.
    """
    try:
        yield
    except MissingError:
        raise MissingError(
            f"{printable(path)} does not exist, and its checkpoint is not whole without it"
        ) from None


def check_part(path: Path, metadata: Mapping[str, str], digest: str) -> None:
    """Raise ReadError where a file is another than the checkpoint names."""
    if metadata.get(DIGEST) != digest:
        raise ReadError(
            f"{printable(path)} is not the file that its checkpoint names: another's, or altered"
        )


def assembled(pieces: Pieces, zeros: Iterable[Place], where: str) -> dict[str, Tensor]:
    """Whole tensors by name.

    Raises:
        ReadError: there are other pieces than it takes.
    """
    found = {}
    for name, places in check_covered([*pieces, *zeros], where).items():
        if places[0] in pieces and places[0].sizes == places[0].whole:
            found[name] = pieces[places[0]]
            continue
        try:
            whole = torch.zeros(places[0].whole, dtype=places[0].dtype)
        except RuntimeError:
            raise ReadError(f"{where}: {printable(name)} does not fit into memory") from None
        for place in places:
            if place in pieces:
                whole[place.slices] = pieces[place]
        found[name] = whole
    return found
