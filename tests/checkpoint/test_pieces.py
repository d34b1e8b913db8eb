"""Tensors cut into pieces are whole again, or it is seen that they are not."""

from __future__ import annotations

import itertools

import pytest
import torch

from maskcl.checkpoint.parts import assembled
from maskcl.checkpoint.pieces import Place, check_covered, grouped
from maskcl.reading import ReadError


def pieces(**tensors):
    return {Place.all_of(name, t.shape, t.dtype): t for name, t in tensors.items()}


WORDS = torch.zeros(6, 2, 3, dtype=torch.int32)
WORDS[:2] = torch.arange(1, 13, dtype=torch.int32).view(2, 2, 3)
GIVEN = {
    "words": WORDS,
    "base": torch.randn(4, 3),
    "minus": torch.full((2,), -0.0),
    "one": torch.tensor(2.5),
    "count": torch.zeros((), dtype=torch.int64),
    "none": torch.zeros(0, 3),
    "still": torch.zeros(3, 2),
    "free": torch.randn(5),
}
LASTING = {
    "base": dict.fromkeys(("base", "minus", "one", "count", "none", "still", "absent")),
    **{f"task-{k}": {"words": slice(k, k + 1)} for k in range(5)},
}


def test_groups_take_their_rows_and_zeros_need_no_file():
    groups, rest, zeros = grouped(pieces(**GIVEN), LASTING)
    assert set(groups) == {"base", "task-0", "task-1"}
    assert {place.name for place in groups["base"]} == {"base", "minus", "one"}
    assert [place.key for place in groups["task-1"]] == ["words@1,0,0"]
    # The last task is in no group; of those that are, rows of zeros are one piece.
    assert {place.key for place in rest} == {"words@5,0,0", "free"}
    assert [(z.name, z.offsets, z.sizes) for z in zeros] == [
        ("count", (), ()),
        ("none", (0, 0), (0, 3)),
        ("still", (0, 0), (3, 2)),
        ("words", (2, 0, 0), (3, 2, 3)),
    ]


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_pieces_of_several_processes_are_whole_again(dim):
    """Rows of a group are in the shards of whoever has them, along any dimension."""
    found, empty = {}, []
    step = -(-WORDS.shape[dim] // 4)
    for rank in range(4):
        start, stop = (min(WORDS.shape[dim], step * at) for at in (rank, rank + 1))
        part = WORDS.narrow(dim, start, stop - start)
        offsets = [0, 0, 0]
        offsets[dim] = start
        place = Place("words", (6, 2, 3), tuple(offsets), tuple(part.shape), WORDS.dtype)
        groups, rest, zeros = grouped({place: part}, LASTING)
        found |= rest
        for group in groups.values():
            found |= group
        empty += zeros
    again = [Place.from_json(place.to_json()) for place in found]
    assert again == list(found)
    assert torch.equal(assembled(found, empty, "it")["words"], WORDS)


def test_bits_are_kept():
    groups, rest, zeros = grouped(pieces(**GIVEN), LASTING)
    found = dict(rest)
    for group in groups.values():
        found |= group
    whole = assembled(found, zeros, "it")
    assert whole.keys() == GIVEN.keys()
    for name, tensor in GIVEN.items():
        assert whole[name].dtype == tensor.dtype
        assert torch.equal(whole[name], tensor)
    assert bool(torch.signbit(whole["minus"]).all())


def place(offsets, sizes, whole=(4, 4), dtype=torch.float32):
    return Place("w", whole, offsets, sizes, dtype)


QUARTERS = [place(at, (2, 2)) for at in itertools.product((0, 2), (0, 2))]


@pytest.mark.parametrize(
    "places",
    [
        QUARTERS[:3],
        [*QUARTERS, QUARTERS[0]],
        [*QUARTERS[:3], place((0, 0), (1, 4))],
        [place((0, 0), (4, 3)), place((0, 2), (4, 1))],
        [place((0, 0), (2, 4)), place((1, 0), (2, 4))],
        [place((0, 0), (2, 4)), place((2, 0), (2, 4), dtype=torch.int32)],
        [place((0, 0), (2, 4)), place((0, 0), (2, 4), whole=(2, 4))],
    ],
)
def test_pieces_that_are_not_all_of_a_tensor_are_refused(places):
    with pytest.raises(ReadError, match="it is damaged: the pieces of w are not all of it"):
        check_covered(places, "it")


def test_pieces_that_are():
    assert check_covered(QUARTERS, "it") == {"w": QUARTERS}
    rows = [place((0, 0), (3, 4)), place((3, 0), (1, 4)), place((4, 0), (0, 4))]
    assert check_covered(rows, "it") == {"w": rows}


@pytest.mark.parametrize(
    "value",
    [
        None, [], ["w"], ["w", [2], [0], [3], "F32"], ["w", [2], [0], [2], "F99"],
        ["w", [2], [0, 0], [2], "F32"], ["w", [2], [-1], [2], "F32"], [3, [2], [0], [2], "F32"],
        ["w", [2.0], [0], [2], "F32"], ["w", 2, 0, 2, "F32"],
    ],
)  # fmt: skip
def test_what_is_no_place_is_refused(value):
    with pytest.raises((TypeError, ValueError, KeyError)):
        Place.from_json(value)
