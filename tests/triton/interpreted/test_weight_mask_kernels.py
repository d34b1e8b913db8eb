"""Triton's weight_mask kernels, interpreted, against the reference: selections for equality."""

import pytest
import torch
from torch import Tensor

from maskcl.reference import weight_mask as reference
from maskcl.triton import _kth, _products, bitmask, weight_mask

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Products: a few roundings of the result. The interpreter cuts digits off for bfloat16.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
# (batch, I, O): tiles and words that are full and that are not, one row, many
SIZES = [(1, 1, 1), (5, 33, 7), (3, 64, 32), (70, 45, 67), (17, 300, 40)]


def _select(scores: Tensor, levels: str, threshold: float = 0.25) -> tuple[object, ...]:
    kth = None
    if levels == "topk":
        kth = reference.kth_largest(scores, max(1, scores.numel() // 3), True)
    return kth, levels, threshold, levels == "binary" and threshold == 0.5, 3.0


def _scores(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Of every sign, many exactly at a threshold of 0.25 or 0.5, at -0 and equal to each other."""
    return torch.randn(shape, generator=rng).mul(4).round().div(8)


def _random(shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=rng).to(dtype)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _assert_near(found: Tensor, wanted: Tensor, size: Tensor, dtype: torch.dtype) -> None:
    """Within a few roundings of ``dtype`` of float64 ``wanted``, a sum of terms of this size."""
    assert found.shape == wanted.shape
    error = (found.double() - wanted).abs()
    assert bool((error <= TOLERANCE[dtype] * (size + 1e-3)).all()), error.max()


@pytest.mark.parametrize("levels", reference.LEVELS)
@pytest.mark.parametrize("threshold", [0.25, 0.5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks(dtype: torch.dtype, threshold: float, levels: str, rng: torch.Generator) -> None:
    scores = torch.cat([_scores((1500,), rng), torch.tensor([torch.nan, torch.inf, -torch.inf])])
    scores = scores.to(dtype)
    select = _select(scores[:1500], levels, threshold)
    found = weight_mask.weight_mask(scores, *select)
    wanted = reference.weight_mask(scores, *select)
    assert found.dtype == dtype
    if levels == "soft":
        torch.testing.assert_close(found, wanted, equal_nan=True)
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("threshold", [0.1, 5e-3, 0.3, 1 / 3, 0.7, 2.2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_thresholds_are_torchs(dtype: torch.dtype, threshold: float) -> None:
    """Rounded to the scores' dtype, whichever side of it that is."""
    t = torch.tensor([threshold], dtype=torch.float64).to(dtype)
    ends = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    near = torch.cat([t, torch.nextafter(t, ends[:1]), torch.nextafter(t, ends[1:])])
    scores = torch.cat([near, -near]).repeat(7)
    kept, symmetric = (
        scores > threshold,
        (scores > threshold).float() - (scores < -threshold).float(),
    )
    for levels, mask in (("binary", kept), ("ternary_symmetric", symmetric)):
        select = (None, levels, threshold, False, 1.0)
        assert torch.equal(weight_mask.weight_mask(scores, *select), mask.to(dtype))
        words = bitmask.pack_scores(scores, *select[:4])
        assert torch.equal(words, bitmask.pack_mask(mask, levels != "binary"))
        ones = torch.ones(1, len(scores)).to(dtype)
        weight = weight_mask.masked_weight(ones, scores[None], *select)
        assert torch.equal(weight, mask[None].to(dtype))
        for rows in (1, 300):
            x, column = torch.ones(rows, 1, dtype=dtype), ones.t().contiguous()
            y = weight_mask.piggyback_linear(x, column, scores[:, None], None, *select)
            assert torch.equal(y, mask.expand(rows, -1).to(dtype))


@pytest.mark.parametrize("levels", reference.LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_and_both_gradients(dtype: torch.dtype, levels: str, rng: torch.Generator) -> None:
    for shape in ((7, 9), (4, 3, 5, 5), (1100,), (0,), (3, 0)):
        scores = _scores(shape, rng)
        if levels == "topk" and not scores.numel():
            continue
        weight, grad = (_random(shape, dtype, rng) for _ in range(2))
        select = _select(scores, levels)
        found = weight_mask.masked_weight(weight, scores, *select)
        wanted = reference.masked_weight(weight, scores, *select)
        exact = levels != "soft"
        if exact:
            assert torch.equal(found, wanted)
        else:
            _assert_near(found, wanted.double(), wanted.double().abs(), dtype)
        for factor in (weight, None):
            rest = (factor, scores, *select, True, True)
            dw, ds = weight_mask.masked_weight_backward(grad, *rest)
            wanted_dw, wanted_ds = reference.masked_weight_backward(grad, *rest)
            assert (dw.dtype, ds.dtype) == (dtype, torch.float32)
            if exact:
                assert torch.equal(dw, wanted_dw)
                assert torch.equal(ds, wanted_ds)
            else:
                _assert_near(dw, wanted_dw.double(), wanted_dw.double().abs(), dtype)
                _assert_near(ds, wanted_ds.double(), wanted_ds.double().abs(), torch.float32)


def test_only_what_is_wanted(rng: torch.Generator) -> None:
    weight, scores, grad = (torch.randn(5, 6, generator=rng) for _ in range(3))
    select = _select(scores, "binary")
    both = weight_mask.masked_weight_backward(grad, weight, scores, *select, True, True)
    for wanted in ((True, False), (False, True), (False, False)):
        some = weight_mask.masked_weight_backward(grad, weight, scores, *select, *wanted)
        for asked, found, full in zip(wanted, some, both, strict=True):
            assert torch.equal(found, full if asked else full.new_empty(0))
    x, g = torch.randn(4, 6, generator=rng), torch.randn(4, 5, generator=rng)
    every = weight_mask.piggyback_linear_backward(g, x, weight, scores, *select, True, True, True)
    for at in range(3):
        wanted = [position == at for position in range(3)]
        some = weight_mask.piggyback_linear_backward(g, x, weight, scores, *select, *wanted)
        for asked, found, full in zip(wanted, some, every, strict=True):
            assert torch.equal(found, full if asked else full.new_empty(0))


@pytest.mark.parametrize("levels", ["binary", "ternary", "ternary_symmetric", "topk"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_weight_that_is_off_is_0_whatever_it_is(dtype: torch.dtype, levels: str) -> None:
    weight = torch.tensor([[torch.inf, torch.nan, -torch.inf, 2.0]], dtype=dtype)
    scores = torch.tensor([[0.0, torch.nan, 0.1, -1.0 if levels != "binary" else 1.0]])
    select = (torch.tensor(0.5), levels, 0.5, False, 1.0)
    on = -2.0 if levels.startswith("ternary") else 2.0
    found = weight_mask.masked_weight(weight, scores, *select)
    assert found.tolist() == [[0.0, 0.0, 0.0, on]]
    x = torch.ones(1, 4, dtype=dtype)
    assert weight_mask.piggyback_linear(x, weight, scores, None, *select).item() == on


def _layouts(x: Tensor) -> dict[str, Tensor]:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype)
    wide[..., ::2] = x
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "every other": wide[..., ::2],
    }


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "every other"])
@pytest.mark.parametrize("strided", ["weight", "scores", "grad", "all"])
def test_strides(strided: str, layout: str, rng: torch.Generator) -> None:
    shape = (4, 3, 5, 2)
    plain = {
        "weight": torch.randn(shape),
        "scores": _scores(shape, rng),
        "grad": torch.randn(shape),
    }
    given = {
        name: _layouts(t)[layout] if strided in (name, "all") else t for name, t in plain.items()
    }
    select = _select(plain["scores"], "ternary")
    found = weight_mask.masked_weight(given["weight"], given["scores"], *select)
    assert found.stride() == torch.empty_like(given["weight"]).stride()
    assert torch.equal(found, reference.masked_weight(plain["weight"], plain["scores"], *select))
    rest = (*select, True, True)
    dw, ds = weight_mask.masked_weight_backward(
        given["grad"], given["weight"], given["scores"], *rest
    )
    assert dw.stride() == torch.empty_like(given["grad"]).stride()
    assert ds.stride() == torch.empty_like(given["scores"]).stride()
    wanted = reference.masked_weight_backward(
        plain["grad"], plain["weight"], plain["scores"], *rest
    )
    assert torch.equal(dw, wanted[0])
    assert torch.equal(ds, wanted[1])


def _linear_case(
    batch: int, ins: int, outs: int, dtype: torch.dtype, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, bias = _random((batch, ins), dtype, rng), _random((outs,), dtype, rng)
    grad, weight = _random((batch, outs), dtype, rng), _random((outs, ins), dtype, rng)
    return x, weight, _scores((outs, ins), rng), bias, grad


def _assert_linear(
    case: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], levels: str, with_bias: bool = True
) -> None:
    """Forward and all gradients, against float64 with the masked weight in x's dtype."""
    x, weight, scores, bias, grad = case
    dtype, select = x.dtype, _select(scores, levels)
    masked = reference.masked_weight(weight, scores, *select).double()
    added = bias.double() if with_bias else torch.zeros(len(bias)).double()
    found = weight_mask.piggyback_linear(x, weight, scores, bias if with_bias else None, *select)
    assert found.dtype == dtype
    size = x.double().abs() @ masked.abs().t() + added.abs()
    _assert_near(found, x.double() @ masked.t() + added, size, dtype)

    rest = (*select, True, True, True)
    dx, dw, ds = weight_mask.piggyback_linear_backward(grad, x, weight, scores, *rest)
    assert (dx.dtype, dw.dtype, ds.dtype) == (dtype, dtype, torch.float32)
    _assert_near(dx, grad.double() @ masked, grad.double().abs() @ masked.abs(), dtype)
    full, sizes = grad.double().t() @ x.double(), grad.double().abs().t() @ x.double().abs()
    mask = reference.weight_mask(scores.double(), _double(select[0]), *select[1:])
    _assert_near(dw, full * mask, sizes, dtype)
    slope = 3.0 * mask * (1 - mask) if levels == "soft" else torch.ones_like(mask)
    w = weight.double()
    # From the float32 accumulator: no rounding to the weight's dtype on the way.
    _assert_near(ds, full * w * slope, sizes * w.abs(), torch.float32)


@pytest.mark.parametrize("levels", reference.LEVELS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_products(sizes: tuple[int, int, int], levels: str, rng: torch.Generator) -> None:
    _assert_linear(_linear_case(*sizes, torch.float32, rng), levels, with_bias=sizes[0] != 3)


@pytest.mark.parametrize("levels", ["binary", "ternary", "soft"])
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("sizes", [(5, 33, 7), (16, 64, 32), (70, 96, 80), (17, 300, 40)], ids=str)
def test_half_precision_products(
    sizes: tuple[int, int, int], dtype: torch.dtype, levels: str, rng: torch.Generator
) -> None:
    _assert_linear(_linear_case(*sizes, dtype, rng), levels)


def _recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that products read from here on."""
    seen: list[str] = []
    launch = weight_mask.masked_product

    def record(x: Tensor, weight: Tensor, source: _products.Source, *rest: object) -> Tensor:
        seen.append(source.levels)
        return launch(x, weight, source, *rest)

    monkeypatch.setattr(weight_mask, "masked_product", record)
    return seen


@pytest.mark.parametrize("ins", [64, 45])
@pytest.mark.parametrize("levels", reference.LEVELS)
def test_large_batches_read_bits(
    levels: str, ins: int, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(weight_mask, "BITS_FROM", 6)
    seen = _recorded(monkeypatch)
    _assert_linear(_linear_case(6, ins, 70, torch.float32, rng), levels)
    bits = {"soft": "soft", "ternary": "bits2", "ternary_symmetric": "bits2"}.get(levels, "bits")
    assert seen == [bits, bits]
    _assert_linear(_linear_case(5, ins, 70, torch.float32, rng), levels)
    assert seen[2:] == [levels, levels]


@pytest.mark.parametrize("shared", [_products.SMALL_SHARED, _products.LARGE_SHARED])
@pytest.mark.parametrize("batch", [1, 40, 100, 300])
def test_every_tile(
    batch: int, shared: int, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(_products, "shared_bytes", lambda device: shared)
    monkeypatch.setattr(_products, "PROGRAMS", 1)
    _assert_linear(_linear_case(batch, 288, 160, torch.float16, rng), "ternary")
    if batch == 40:  # the tile of rows that are not aligned is the same for every batch
        _assert_linear(_linear_case(batch, 130, 150, torch.float16, rng), "ternary")


def test_sums_that_are_split(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    split: list[int] = []
    add = _products._sum_splits

    def record(parts: Tensor, bias: Tensor | None, out: Tensor, splits: int) -> None:
        split.append(splits)
        add(parts, bias, out, splits)

    monkeypatch.setattr(_products, "_sum_splits", record)
    # In turn the sums of y, of dx and of the weight's gradients are long.
    for sizes in ((70, 259, 66), (70, 66, 259), (260, 70, 66)):
        case = _linear_case(*sizes, torch.float16, rng)
        for programs, levels, wanted in ((1000, "soft", [2]), (1, "binary", [])):
            monkeypatch.setattr(_products, "PROGRAMS", programs)
            split.clear()
            _assert_linear(case, levels)
            assert split == wanted


def test_a_batch_of_none_and_layers_of_none() -> None:
    for batch, ins, outs in ((0, 4, 3), (2, 0, 3), (2, 4, 0)):
        x, weight = torch.ones(batch, ins), torch.ones(outs, ins)
        scores, grad = torch.ones(outs, ins), torch.ones(batch, outs)
        bias = torch.arange(outs).float()
        select = (None, "binary", 0.5, False, 1.0)
        y = weight_mask.piggyback_linear(x, weight, scores, bias, *select)
        assert torch.equal(y, bias.expand(batch, outs) + ins)
        dx, dw, ds = weight_mask.piggyback_linear_backward(
            grad, x, weight, scores, *select, True, True, True
        )
        assert torch.equal(dx, torch.full((batch, ins), float(outs)))
        assert torch.equal(dw, torch.full((outs, ins), float(batch)))
        assert torch.equal(ds, dw)


def test_same_bits_every_time(rng: torch.Generator) -> None:
    x, weight, scores, _, grad = _linear_case(300, 40, 20, torch.float32, rng)
    rest = (*_select(scores, "binary"), True, True, True)
    first, second = (
        weight_mask.piggyback_linear_backward(grad, x, weight, scores, *rest) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("size", [1, 31, 2048, 5000])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kth_largest(dtype: torch.dtype, size: int, rng: torch.Generator) -> None:
    values = torch.randn(size, generator=rng).to(dtype)
    if size > 100:
        values[::7] = values[3]
        values[5], values[6] = torch.inf, -torch.inf
        values[8:11] = torch.nan
        values[11], values[12], values[13] = 0.0, -0.0, torch.finfo(dtype).smallest_normal
    for magnitude in (False, True):
        order = (values.abs() if magnitude else values).float().sort(descending=True).values
        for k in sorted({1, min(4, size), (size + 1) // 2, size}):
            found = weight_mask.kth_largest(values, k, magnitude)
            assert (found.shape, found.dtype) == ((), torch.float32)
            torch.testing.assert_close(found, order[k - 1], rtol=0, atol=0, equal_nan=True)


def test_kth_largest_of_values_that_differ_in_the_last_bit(rng: torch.Generator) -> None:
    bits = torch.randperm(3000, generator=rng).to(torch.int32) + 0x3F800000
    values = bits.view(torch.float32)
    for k in (1, 1500, 2999, 3000):
        found = weight_mask.kth_largest(values, k, False)
        assert found.view(torch.int32).item() == 0x3F800000 + 3000 - k
        found = weight_mask.kth_largest(-values, k, False)
        assert (-found).view(torch.int32).item() == 0x3F800000 + k - 1


def test_kth_largest_with_more_blocks_than_programs(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(_kth, "BLOCK", 64)
    monkeypatch.setattr(_kth, "PARTS", 3)
    values = torch.randn(20, 50, generator=rng)[:, ::2]
    order = values.flatten().sort(descending=True).values
    for k in (1, 77, 500):
        assert weight_mask.kth_largest(values, k, False) == order[k - 1]


@pytest.mark.parametrize("alike", [0, 100, 900])
def test_kth_largest_where_many_values_begin_alike(
    alike: int, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(_kth, "BLOCK", 128)
    monkeypatch.setattr(_kth, "PARTS", 3)
    values = torch.randn(1000, generator=rng)
    near = torch.randperm(alike, generator=rng).to(torch.int32) + 0x3F800000
    values[: len(near)] = near.view(torch.float32)
    order = values.sort(descending=True).values
    for k in (1, 50, 200, 500, 1000):
        assert weight_mask.kth_largest(values, k, False) == order[k - 1]


def test_float64_is_refused() -> None:
    x, s = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64)
    select = (None, "binary", 0.5, False, 1.0)
    with pytest.raises(TypeError, match=r"piggyback_linear: scores is torch\.float64"):
        weight_mask.piggyback_linear(x, x, s, None, *select)
    with pytest.raises(TypeError, match=r"masked_weight: weight is torch\.float64"):
        weight_mask.masked_weight(s, x, *select)
    with pytest.raises(TypeError, match=r"kth_largest: values is torch\.float64"):
        weight_mask.kth_largest(s, 1, False)
