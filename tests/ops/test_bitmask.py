"""bitmask: bits equal the masks they came from; weights and layers that read them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskcl import ops
from tests.helpers import assert_close, assert_sum_close, variants

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0,), (1,), (31,), (32,), (33,), (7, 9), (4, 6, 3, 3), (5, 64), (130, 65)]


def signed(shape, device):
    """A mask of -1, 0 and 1."""
    return torch.randint(-1, 2, shape, device=device)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_where_the_contract_says(backend, device, shape):
    mask = signed(shape, device)
    words = ops.pack_mask(mask, ternary=True)
    count = mask.numel()
    assert words.dtype == torch.int32 and words.shape == (2, (count + 31) // 32)
    flat = mask.flatten().tolist()
    for plane, bit in zip(words.tolist(), (lambda v: v != 0, lambda v: v < 0), strict=True):
        for w, word in enumerate(plane):
            wanted = sum(bit(v) << j for j, v in enumerate(flat[32 * w : 32 * w + 32]))
            assert word & 0xFFFFFFFF == wanted
    assert torch.equal(ops.pack_mask(mask), words[0])


MASK_DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float64,
    *DTYPES,
]


@pytest.mark.parametrize("dtype", MASK_DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pack_and_unpack(backend, device, shape, dtype):
    if dtype == torch.float64 and backend == "triton":
        pytest.skip("triton does not take torch.float64")
    unsigned = dtype in (torch.bool, torch.uint8)
    mask = signed(shape, device)
    mask = mask.abs().to(dtype) if unsigned else mask.to(dtype)
    for kind, view in variants(mask.float()).items():
        words = ops.pack_mask(view.to(dtype), ternary=not unsigned)
        assert torch.equal(ops.unpack_mask(words, shape, dtype=dtype), mask), kind
    ones = ops.pack_mask(mask != 0)
    assert torch.equal(ops.unpack_mask(ones, shape, dtype=dtype) != 0, mask != 0)


def test_a_number_that_float_does_not_hold_has_its_bit(backend, device):
    mask = torch.tensor([2**60 + 1, 0, -(2**60) - 1], device=device)
    assert ops.pack_mask(mask, ternary=True).tolist() == [[5], [4]]


SELECTS = {
    "binary": {},
    "inclusive": {"inclusive": True},
    "ternary": {"levels": "ternary"},
    "ternary_symmetric": {"levels": "ternary_symmetric"},
    "topk": {"levels": "topk", "density": 0.4},
}


@pytest.mark.parametrize("kind", SELECTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1,), (33,), (4, 6, 3, 3), (130, 65)], ids=str)
def test_scores_to_bits(backend, device, shape, dtype, kind):
    scores = torch.randn(shape, device=device).mul(4).round().div(8).to(dtype)
    ones = torch.ones_like(scores)
    mask = ops.piggyback_weight(ones, scores, 0.25, **SELECTS[kind])
    for view in variants(scores).values():
        words = ops.pack_scores(view, 0.25, **SELECTS[kind])
        assert torch.equal(words, ops.pack_mask(mask, ternary=kind.startswith("ternary")))


def test_set_operations_and_counts(backend, device):
    masks = torch.rand(2, 3, 1000, device=device) > 0.4
    words = torch.stack([torch.stack([ops.pack_mask(m) for m in rows]) for rows in masks])
    a, b = words
    for op, wanted in {
        ops.and_words: masks[0] & masks[1],
        ops.or_words: masks[0] | masks[1],
        ops.xor_words: masks[0] ^ masks[1],
        ops.andnot_words: masks[0] & ~masks[1],
    }.items():
        found = op(a, b)
        assert torch.equal(found, torch.stack([ops.pack_mask(m) for m in wanted]))
        assert torch.equal(ops.popcount(found), wanted.sum(-1))
        assert torch.equal(op(a[:, ::2], b[:, ::2]), found[:, ::2])
    assert torch.equal(ops.popcount(words), masks.sum(-1))
    assert ops.popcount(words[0, 0]).shape == ()
    assert ops.popcount(words[0, 0, :0]).item() == 0
    every = torch.full((70_000,), -1, dtype=torch.int32, device=device)
    assert ops.popcount(every).item() == 32 * 70_000


@pytest.mark.parametrize("ternary", [False, True], ids=["binary", "ternary"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_weight(backend, device, dtype, shape, ternary):
    weight, mask = torch.randn(shape, device=device).to(dtype), signed(shape, device)
    mask = mask if ternary else mask.abs()
    words = ops.pack_mask(mask, ternary=ternary)
    grad = torch.randn(shape, device=device).to(dtype)
    for kind, view in variants(weight).items():
        leaf = view.detach().requires_grad_()
        y = ops.packed_weight(leaf, words)
        assert y.dtype == dtype and y.stride() == torch.empty_like(view).stride(), kind
        assert torch.equal(y, weight * mask), kind
        assert torch.equal(torch.autograd.grad(y, leaf, grad)[0], grad * mask), kind


def test_packed_weight_is_a_select(backend, device):
    weight = torch.tensor([torch.nan, torch.inf, 2.0], device=device)
    words = ops.pack_mask(torch.tensor([0, 0, 1], device=device))
    assert ops.packed_weight(weight, words).tolist() == [0.0, 0.0, 2.0]


@pytest.mark.parametrize("ternary", [False, True], ids=["binary", "ternary"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("ins", [1, 20, 33, 64, 100])
@pytest.mark.parametrize("batch", [1, 2, 3, 4, 5, 16, 17, 40])
def test_packed_linear(backend, device, batch, ins, dtype, ternary):
    outs = 37
    weight, mask = torch.randn(outs, ins, device=device).to(dtype), signed((outs, ins), device)
    mask = mask if ternary else mask.abs()
    words = ops.pack_mask(mask, ternary=ternary)
    x, bias = torch.randn(batch, ins, device=device).to(dtype), torch.randn(outs, device=device)
    bias = bias.to(dtype)
    masked = weight.double() * mask
    terms = x.double()[:, None] * masked
    assert_sum_close(ops.packed_linear(x, weight, words), terms, [-1], dtype)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = ops.packed_linear(*leaves[:2], words, bias)
    parts = torch.cat([terms, bias.detach().double().expand(batch, outs)[..., None]], -1)
    assert_sum_close(y, parts, [-1], dtype)
    grad = torch.randn(batch, outs, device=device).to(dtype)
    dx, dw, db = torch.autograd.grad(y, leaves, grad)
    g = grad.double()
    assert_sum_close(dx, g[:, :, None] * masked, [1], dtype, 2)
    assert_sum_close(dw, g[:, :, None] * x.detach().double()[:, None] * mask, [0], dtype, 2)
    assert_sum_close(db, g, [0], dtype)


def test_packed_linear_over_many_row_blocks(backend, device):
    outs, ins = (70, 40) if backend == "triton" and device == "cpu" else (1027, 2100)
    weight, mask = torch.randn(outs, ins, device=device), signed((outs, ins), device)
    words = ops.pack_mask(mask, ternary=True)
    x = torch.randn(9, ins, device=device)
    wanted = x.double() @ (weight.double() * mask).t()
    assert_close(ops.packed_linear(x, weight, words), wanted, torch.float32, 40)


def test_packed_linear_shapes_strides_and_weights_that_are_not_finite(backend, device):
    weight, mask = torch.randn(6, 10, device=device), torch.rand(6, 10, device=device) > 0.5
    words, masked = ops.pack_mask(mask), weight * mask
    broken = torch.where(mask, weight, torch.nan)
    for shape in ((10,), (3, 10), (2, 3, 10), (0, 10)):
        x = torch.randn(shape, device=device)
        for w in (*variants(weight).values(), broken):
            y = ops.packed_linear(x, w, words)
            assert_close(y, F.linear(x.double(), masked.double()), torch.float32, 4)
    x = torch.randn(4, 10, device=device)
    for view in variants(x).values():
        y = ops.packed_linear(view, weight, words)
        assert_close(y, x.double() @ masked.double().t(), torch.float32, 4)


def test_packed_linear_has_the_same_bits_on_any_number_of_threads(backend, device):
    """37 rows fall into groups of four in another way on two threads than on one."""
    weight, mask = torch.randn(37, 3000, device=device), signed((37, 3000), device)
    words = ops.pack_mask(mask, ternary=True)
    threads = torch.get_num_threads()
    try:
        for batch in range(1, 17):
            x = torch.randn(batch, 3000, device=device)
            found = []
            for count in (1, 2):
                torch.set_num_threads(count)
                found.append(ops.packed_linear(x, weight, words))
            assert torch.equal(*found), batch
    finally:
        torch.set_num_threads(threads)


def test_packed_embedding(backend, device):
    for dtype in DTYPES:
        for width in (1, 7, 32, 40):
            weight, mask = (
                torch.randn(11, width, device=device).to(dtype),
                signed((11, width), device),
            )
            index = torch.randint(0, 11, (3, 4), device=device)
            wanted = F.embedding(index, weight * mask)
            words = ops.pack_mask(mask, ternary=True)
            assert torch.equal(ops.packed_embedding(index, weight, words), wanted)
            assert torch.equal(ops.packed_embedding(index.int(), weight, words), wanted)
            wanted = F.embedding(index, weight * mask.abs())
            assert torch.equal(ops.packed_embedding(index, weight, words[0]), wanted)
    assert ops.packed_embedding(index[:0], weight, words).shape == (0, 4, 40)


def test_autocast(backend, device):
    weight, x = torch.randn(6, 10, device=device), torch.randn(4, 10, device=device)
    words = ops.pack_mask(torch.ones(6, 10, device=device))
    with torch.autocast(device, torch.bfloat16):
        assert ops.packed_linear(x, weight, words).dtype == torch.bfloat16


def test_float64_on_the_cpu():
    words = ops.pack_mask(torch.rand(5, 7) > 0.5)
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 7), (5, 7), (5,))
    )
    assert torch.autograd.gradcheck(
        lambda *a: ops.packed_linear(*a[:2], words, a[2]), (x, weight, bias)
    )
    assert torch.autograd.gradcheck(lambda w: ops.packed_weight(w, words), (weight,))


W, WORDS = torch.zeros(3, 11), torch.zeros(2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: ops.pack_mask([1, 0]), TypeError, "mask is a list"),
        (lambda: ops.pack_mask(torch.ones(3, dtype=torch.bool), ternary=True), TypeError, "signed"),
        (lambda: ops.pack_scores(W, levels="soft"), ValueError, "'soft', which has no bits"),
        (
            lambda: ops.unpack_mask(WORDS, (3, 22)),
            ValueError,
            r"words has shape \[2\], wanted \[3\]",
        ),
        (lambda: ops.unpack_mask(WORDS.long(), (3, 11)), TypeError, "words is torch.int64"),
        (
            lambda: ops.unpack_mask(torch.stack([WORDS, WORDS]), (3, 11), dtype=torch.bool),
            TypeError,
            "wanted a signed one for ternary",
        ),
        (lambda: ops.and_words(WORDS, WORDS[:1]), ValueError, r"b has shape \[1\]"),
        (lambda: ops.popcount(W), TypeError, "words is torch.float32, wanted torch.int32"),
        (
            lambda: ops.packed_weight(W, WORDS[:1]),
            ValueError,
            r"words has shape \[1\], wanted \[2\]",
        ),
        (lambda: ops.packed_linear(torch.zeros(2, 5), W, WORDS), ValueError, "weight has shape"),
        (lambda: ops.packed_linear(W, W.double(), WORDS), TypeError, "weight is torch.float64"),
        (
            lambda: ops.packed_embedding(torch.zeros(2), W, WORDS),
            TypeError,
            "index is torch.float32",
        ),
        (
            lambda: ops.packed_embedding(torch.tensor([3]), W, WORDS),
            (IndexError, RuntimeError),
            "index",
        ),
        (
            lambda: ops.packed_embedding(torch.tensor([-1]), W, WORDS),
            (IndexError, RuntimeError),
            "index",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("batch", [17, 40, 96])
def test_packed_linear_has_the_bits_of_the_mask_that_trained(backend, device, batch):
    if backend != "cpp":
        pytest.skip(f"{backend} promises no bits across its two products")
    weight, bias = torch.randn(70, 1100, device=device), torch.randn(70, device=device)
    scores, x = torch.randn_like(weight), torch.randn(batch, 1100, device=device)
    trained = ops.piggyback_linear(x, weight, scores, 0.0, bias)
    assert torch.equal(ops.packed_linear(x, weight, ops.pack_scores(scores, 0.0), bias), trained)
