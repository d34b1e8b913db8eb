"""Triton's bitmask kernels, interpreted, against the reference; all but sums for equality."""

import pytest
import torch
from torch import Tensor

from maskcl.reference import bitmask as reference
from maskcl.reference import weight_mask
from maskcl.triton import bitmask

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
SHAPES = [(0,), (1,), (31,), (32,), (33,), (7, 9), (4, 3, 5, 5), (70, 33)]
MASKS = [
    *DTYPES,
    torch.float64,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
]
UNSIGNED = [torch.uint8, torch.bool]


def _mask(shape: tuple[int, ...], ternary: bool, rng: torch.Generator) -> Tensor:
    return torch.randint(-1 if ternary else 0, 2, shape, generator=rng)


def _words(shape: tuple[int, ...], ternary: bool, rng: torch.Generator) -> Tensor:
    return reference.pack_mask(_mask(shape, ternary, rng), ternary)


@pytest.mark.parametrize(
    ("dtype", "ternary"),
    [(dtype, False) for dtype in (*MASKS, *UNSIGNED)] + [(dtype, True) for dtype in MASKS],
    ids=str,
)
def test_packing_there_and_back(dtype: torch.dtype, ternary: bool, rng: torch.Generator) -> None:
    for shape in SHAPES:
        mask = _mask(shape, ternary, rng)
        words = bitmask.pack_mask(mask.to(dtype), ternary)
        assert torch.equal(words, reference.pack_mask(mask, ternary))
        found = bitmask.unpack_mask(words, list(shape), dtype)
        assert found.dtype == dtype
        assert torch.equal(found.double(), mask.double())


def test_values_that_are_not_numbers_and_zeros_with_a_sign() -> None:
    mask = torch.tensor([torch.nan, -0.0, -torch.inf, 1e-45, -1e-45, 0.0])
    for dtype in (torch.float32, torch.float64):
        for ternary in (False, True):
            found = bitmask.pack_mask(mask.to(dtype), ternary)
            assert torch.equal(found, reference.pack_mask(mask.to(dtype), ternary))
    minus_zero = torch.tensor([-0.0, -1.0], dtype=torch.bfloat16)
    assert bitmask.pack_mask(minus_zero, True).tolist() == [[2], [2]]


def test_the_order_of_bits() -> None:
    mask = torch.zeros(2, 35)
    mask[0, 0] = mask[0, 31] = mask[0, 32] = mask[1, 0] = 1
    words = bitmask.pack_mask(mask.t().contiguous().t(), False)
    assert words.tolist() == [1 - 2**31, 1 + 8, 0]


@pytest.mark.parametrize("levels", ["binary", "ternary", "ternary_symmetric", "topk"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_to_bits(dtype: torch.dtype, levels: str, rng: torch.Generator) -> None:
    for shape in SHAPES[1:]:
        scores = torch.randn(shape, generator=rng).mul(4).round().div(8).to(dtype)
        scores.view(-1)[-1] = torch.nan
        kth = weight_mask.kth_largest(scores.nan_to_num(), (scores.numel() + 2) // 3, True)
        for inclusive in (False, True) if levels == "binary" else (False,):
            select = (kth if levels == "topk" else None, levels, 0.25, inclusive)
            found = bitmask.pack_scores(scores, *select)
            assert torch.equal(found, reference.pack_scores(scores, *select))


@pytest.mark.parametrize("how", ["and", "or", "xor", "andnot"])
def test_combining(how: str, rng: torch.Generator) -> None:
    for shape in ((0,), (1,), (2, 1500)):
        a, b = (
            torch.randint(-(2**31), 2**31, shape, generator=rng, dtype=torch.int32)
            for _ in range(2)
        )
        found = bitmask.combine_words(a, b, how)
        assert torch.equal(found, reference.combine_words(a, b, how))
    a, b = a.t(), b.t().contiguous()
    assert torch.equal(bitmask.combine_words(a, b, how), reference.combine_words(a, b, how))


def test_combining_in_a_way_that_is_not_there() -> None:
    words = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="how: found 'nand'"):
        bitmask.combine_words(words, words, "nand")


def test_counting(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    cases = [(0,), (1,), (1500,), (2, 3), (3, 2, 1030), (0, 4), (3, 0)]
    for _ in range(2):
        for shape in cases:
            words = torch.randint(-(2**31), 2**31, shape, generator=rng, dtype=torch.int32)
            words.view(-1)[:2] = -1
            found = bitmask.popcount_words(words)
            assert torch.equal(found, reference.popcount_words(words))
        # Now every program takes several blocks, and there are fewer programs than blocks.
        monkeypatch.setattr(bitmask, "BLOCK", 64)
        monkeypatch.setattr(bitmask, "PARTS", 4)
    words = torch.full((2, 50), -1, dtype=torch.int32)[:, ::2]
    assert bitmask.popcount_words(words).tolist() == [25 * 32] * 2


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_weights(dtype: torch.dtype, ternary: bool, rng: torch.Generator) -> None:
    for shape in SHAPES:
        weight, words = torch.randn(shape, generator=rng).to(dtype), _words(shape, ternary, rng)
        weight.view(-1)[::5] = torch.inf
        wanted = reference.packed_weight(weight, words)
        assert torch.equal(bitmask.packed_weight(weight, words), wanted)
        if len(shape) > 1:
            strided = weight.transpose(0, 1).contiguous().transpose(0, 1)
            found = bitmask.packed_weight(strided, words)
            assert found.stride() == strided.stride()
            assert torch.equal(found, wanted)


def test_a_weight_that_is_off_is_0_whatever_it_is() -> None:
    weight = torch.tensor([[torch.inf, torch.nan, -torch.inf, 2.0]])
    words = torch.tensor([8], dtype=torch.int32)
    assert bitmask.packed_weight(weight, words).tolist() == [[0.0, 0.0, 0.0, 2.0]]
    for batch in (1, 2):
        y = bitmask.packed_linear(torch.ones(batch, 4), weight, words, None)
        assert torch.equal(y, torch.full((batch, 1), 2.0))
    many = torch.full((1, 64), torch.nan)
    many[0, 40] = 3.0
    words = torch.tensor([0, 1 << 8], dtype=torch.int32)
    assert bitmask.packed_linear(torch.ones(1, 64), many, words, None).item() == 3.0


def _assert_linear(
    x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> None:
    found = bitmask.packed_linear(x, weight, words, bias)
    masked = reference.packed_weight(weight, words).double()
    added = 0.0 if bias is None else bias.double()
    wanted = x.double() @ masked.t() + added
    size = x.double().abs() @ masked.abs().t() + (0.0 if bias is None else bias.double().abs())
    assert (found.dtype, found.shape) == (dtype, wanted.shape)
    error = (found.double() - wanted).abs()
    assert bool((error <= TOLERANCE[dtype] * (size + 1e-3)).all()), error.max()


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [1, 16, 17, 70])
def test_layers(batch: int, dtype: torch.dtype, ternary: bool, rng: torch.Generator) -> None:
    # Rows of W that begin with a word, in full tiles and not, and rows that do not.
    for ins, outs in ((64, 40), (96, 67), (1056, 3), (33, 7), (1, 1)):
        x, bias = (torch.randn(s, generator=rng).to(dtype) for s in ((batch, ins), (outs,)))
        weight = torch.randn(outs, ins, generator=rng).to(dtype)
        words = _words((outs, ins), ternary, rng)
        _assert_linear(x, weight, words, bias if outs != 40 else None, dtype)


def test_one_row_and_many_units(rng: torch.Generator) -> None:
    weight, x = torch.randn(2050, 32, generator=rng), torch.randn(1, 32, generator=rng)
    _assert_linear(x, weight, _words((2050, 32), True, rng), None, torch.float32)


def test_strides_of_layers(rng: torch.Generator) -> None:
    weight, words = torch.randn(10, 64, generator=rng), _words((10, 64), True, rng)
    wide_words = torch.stack([words, words], -1)[..., 0]
    bias = torch.randn(10, 2, generator=rng)[:, 1]
    for batch in (1, 5):
        x = torch.randn(batch, 64, generator=rng)
        wide = torch.full((batch, 128), torch.nan)
        wide[:, ::2] = x
        strided = weight.t().contiguous().t()
        found = bitmask.packed_linear(wide[:, ::2], strided, wide_words, bias)
        assert torch.equal(found, bitmask.packed_linear(x, weight, words, bias.clone()))


def test_layers_of_none() -> None:
    for batch, ins, outs in ((0, 32, 3), (1, 32, 0), (2, 0, 3), (1, 0, 3)):
        words = reference.pack_mask(torch.ones(outs, ins), False)
        bias = torch.arange(outs).float()
        y = bitmask.packed_linear(torch.ones(batch, ins), torch.ones(outs, ins), words, bias)
        assert torch.equal(y, bias.expand(batch, outs) + ins)


@pytest.mark.parametrize("ternary", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_embeddings(dtype: torch.dtype, ternary: bool, rng: torch.Generator) -> None:
    for entries, width in ((13, 5), (3, 64), (4, 1), (2, 2100)):
        weight = torch.randn(entries, width, generator=rng).to(dtype)
        words = _words((entries, width), ternary, rng)
        for shape in ((), (0,), (7,), (3, 500) if width < 10 else (3, 2)):
            index = torch.randint(0, entries, shape, generator=rng)
            found = bitmask.packed_embedding(index, weight, words)
            assert torch.equal(found, reference.packed_embedding(index, weight, words))
    index = torch.tensor([[0, 1], [1, 1]]).t()
    found = bitmask.packed_embedding(index, weight.t().contiguous().t(), words)
    assert torch.equal(found, reference.packed_embedding(index, weight, words))


def test_an_entry_that_is_not_there_reads_nothing() -> None:
    words = torch.tensor([-1], dtype=torch.int32)
    index = torch.tensor([1, 2**40, -1, 4])
    found = bitmask.packed_embedding(index, torch.arange(8.0).view(4, 2) + 1, words)
    assert found.tolist() == [[3, 4], [0, 0], [0, 0], [0, 0]]


def test_other_dtypes_are_refused() -> None:
    words, weight = torch.zeros(1, dtype=torch.int32), torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(TypeError, match=r"packed_weight: weight is torch\.float64"):
        bitmask.packed_weight(weight, words)
    with pytest.raises(TypeError, match=r"unpack_mask: words is torch\.int64, wanted one of torch"):
        bitmask.unpack_mask(words.long(), [2, 2], torch.float32)
