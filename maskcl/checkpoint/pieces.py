"""Tensors in pieces: what is written once, what one process has of a sharded one, what is zero."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maskcl.reading import ReadError
from maskcl.tensor_file import DTYPES, KINDS
from maskcl.text import printable

Lasting = Mapping[str, Mapping[str, "slice | None"]]
"""Group -> name -> rows along the first dimension that the group has of it; None: all of it."""


@dataclass(frozen=True)
class Place:
    """Where in a tensor a piece of it is.

    Attributes:
        name: of the tensor.
        whole: its shape.
        offsets: of the piece's first element, one a dimension.
        sizes: the piece's shape.
        dtype: of the tensor.
    """

    name: str
    whole: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Its name in a file: the tensor's, where it is all of it."""
        if self.sizes == self.whole:
            return self.name
        return f"{self.name}@{','.join(map(str, self.offsets))}"

    @property
    def slices(self) -> tuple[slice, ...]:
        """What it is of the tensor."""
        ends = zip(self.offsets, self.sizes, strict=True)
        return tuple(slice(start, start + size) for start, size in ends)

    def rows(self, start: int, stop: int) -> Place:
        """Those of its rows that are the tensor's rows from start to stop; they have to be its."""
        offsets, sizes = (start, *self.offsets[1:]), (stop - start, *self.sizes[1:])
        return replace(self, offsets=offsets, sizes=sizes)

    def to_json(self) -> list[Any]:
        """Plain lists and text."""
        shapes = [list(part) for part in (self.whole, self.offsets, self.sizes)]
        return [self.name, *shapes, DTYPES[self.dtype]]

    @classmethod
    def all_of(cls, name: str, shape: Iterable[int], dtype: torch.dtype) -> Place:
        """All of a tensor."""
        whole = tuple(shape)
        return cls(name, whole, (0,) * len(whole), whole, dtype)

    @classmethod
    def from_json(cls, value: Any) -> Place:
        """What `to_json` gave.

        Raises:
            ValueError, TypeError, KeyError: it gave something else, or the piece is not inside its
                tensor.
        """
        name, *lists, kind = value
        whole, offsets, sizes = (tuple(part) for part in lists)
        is_good = isinstance(name, str) and len(whole) == len(offsets) == len(sizes)
        if not is_good or not all(type(n) is int and n >= 0 for n in (*whole, *offsets, *sizes)):
            raise ValueError("no place of a piece")
        if any(a + n > end for a, n, end in zip(offsets, sizes, whole, strict=True)):
            raise ValueError("a piece that reaches out of its tensor")
        return cls(name, whole, offsets, sizes, KINDS[kind])


Pieces = dict[Place, Tensor]


def grouped(pieces: Pieces, lasting: Lasting) -> tuple[dict[str, Pieces], Pieces, list[Place]]:
    """Pieces by group, those of none, and where of a group's all bits are zero.

    What is zero is in no group and needs no file: rows of tasks that are yet to come.
    """
    claims: dict[str, list[tuple[str, slice | None]]] = {}
    for group, names in lasting.items():
        for name, rows in names.items():
            claims.setdefault(name, []).append((group, rows))
    groups: dict[str, Pieces] = {}
    rest: Pieces = {}
    zeros: list[Place] = []
    for place, tensor in pieces.items():
        for owner, part, values in _claimed(place, tensor, claims.get(place.name, [])):
            if owner is None:
                rest[part] = values
            elif _is_zero(values):
                zeros.append(part)
            else:
                groups.setdefault(owner, {})[part] = values
    return groups, rest, _joined(zeros)


def _claimed(
    place: Place, tensor: Tensor, claims: list[tuple[str, slice | None]]
) -> Iterator[tuple[str | None, Place, Tensor]]:
    """A piece in the parts that groups have of it, and between them what none has."""
    whole = [group for group, rows in claims if rows is None]
    if whole or not claims:
        yield (whole[0] if whole else None), place, tensor
        return
    first, last = place.offsets[0], place.offsets[0] + place.sizes[0]
    cuts = [(rows.start, rows.stop, group) for group, rows in claims if rows is not None]
    at = first
    for begin, end, group in [*sorted(cuts), (last, last, None)]:
        start, stop = max(begin, at), min(end, last)
        for owner, a, b in ((None, at, min(start, last)), (group, start, stop)):
            if a < b:
                yield owner, place.rows(a, b), tensor[a - first : b - first]
        at = max(at, stop)


def _is_zero(tensor: Tensor) -> bool:
    return not torch.any(tensor.detach().contiguous().flatten().view(torch.uint8))


def _joined(places: list[Place]) -> list[Place]:
    """The same with rows that follow each other as one piece: few, however many tasks there are."""
    found: list[Place] = []
    for place in sorted(places, key=lambda p: (p.name, p.offsets[1:], p.offsets)):
        if found and _follows(place, found[-1]):
            found[-1] = found[-1].rows(found[-1].offsets[0], place.offsets[0] + place.sizes[0])
        else:
            found.append(place)
    return found


def _follows(place: Place, before: Place) -> bool:
    is_beside = (before.name, before.offsets[1:], before.sizes[1:]) == (
        place.name, place.offsets[1:], place.sizes[1:],
    )  # fmt: skip
    if not is_beside or not place.whole:  # a number has no rows
        return False
    return before.offsets[0] + before.sizes[0] == place.offsets[0]


def check_covered(places: Iterable[Place], where: str) -> dict[str, list[Place]]:
    """The pieces of each tensor.

    Raises:
        ReadError: they are not all of it, once; ``where`` is named.
    """
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(place.name, []).append(place)
    for name, pieces in found.items():
        whole, dtype = pieces[0].whole, pieces[0].dtype
        is_one = all((place.whole, place.dtype) == (whole, dtype) for place in pieces)
        covered = sum(math.prod(place.sizes) for place in pieces)
        if not is_one or covered != math.prod(whole) or _overlap(pieces):
            raise ReadError(
                f"{where} is damaged: the pieces of {printable(name)} are not all of it"
            )
    return found


def _overlap(places: list[Place]) -> bool:
    """Whether two pieces have an element in common."""
    found = sorted((place for place in places if 0 not in place.sizes), key=lambda p: p.offsets)
    for at, one in enumerate(found):
        for other in found[at + 1 :]:
            if one.whole and other.offsets[0] >= one.offsets[0] + one.sizes[0]:
                break
            pairs = zip(one.offsets, one.sizes, other.offsets, other.sizes, strict=True)
            if all(a < b + m and b < a + n for a, n, b, m in pairs):
                return True
    return False
