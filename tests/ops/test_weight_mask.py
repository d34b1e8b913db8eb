"""weight_mask: selections equal the reference's to the bit, products and gradients float64's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskcl import backends, ops
from maskcl.reference import weight_mask as reference
from tests.helpers import assert_close, assert_sum_close, variants

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0,), (3, 0), (1,), (33,), (7, 9), (4, 6, 3, 3), (130, 65)]
LEVELS = ["binary", "inclusive", "ternary", "ternary_symmetric", "topk", "soft"]
THRESHOLD = 0.25


def arguments(levels):
    """Keywords of the public ops."""
    return {
        "inclusive": {"levels": "binary", "inclusive": True},
        "topk": {"levels": "topk", "density": 0.3},
        "soft": {"levels": "soft", "scale": 3.0},
    }.get(levels, {"levels": levels})


def wide(scores, levels):
    """m(s) in float64, written out once more."""
    s = scores.double()
    match levels:
        case "binary":
            return torch.where(s > THRESHOLD, 1.0, 0.0).double()
        case "inclusive":
            return torch.where(s >= THRESHOLD, 1.0, 0.0).double()
        case "ternary":
            return torch.where(s > THRESHOLD, 1.0, torch.where(s < 0, -1.0, 0.0)).double()
        case "ternary_symmetric":
            return s.sign() * (s.abs() > THRESHOLD)
        case "topk":
            k = max(1, round(0.3 * s.numel()))
            return (s.abs() >= s.abs().flatten().sort(descending=True).values[k - 1]).double()
        case _:
            return torch.sigmoid(3.0 * (s - THRESHOLD))


def inputs(shape, dtype, device):
    """Weight and float32 scores, some of them at the threshold, at 0 and equal to each other."""
    weight = torch.randn(shape, device=device).to(dtype)
    scores = torch.randn(shape, device=device).mul(4).round().div(8)
    return weight, scores


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_weight(backend, device, dtype, shape, levels):
    weight, scores = inputs(shape, dtype, device)
    if levels == "topk" and not scores.numel():
        with pytest.raises(ValueError, match="wanted at least one for 'topk'"):
            ops.piggyback_weight(weight, scores, levels="topk", density=0.3)
        return
    mask = wide(scores, levels)
    for kind, view in variants(weight).items():
        y = ops.piggyback_weight(view, scores, THRESHOLD, **arguments(levels))
        assert y.dtype == dtype and y.stride() == torch.empty_like(view).stride(), kind
        if levels == "soft":
            assert_close(y, weight.double() * mask, dtype)
        else:
            assert torch.equal(y.double(), weight.double() * mask), kind


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("same", [False, True], ids=["float32 scores", "weight's dtype"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(backend, device, dtype, same, levels):
    for shape in ((7, 9), (4, 6, 3, 3)):
        weight, scores = inputs(shape, dtype, device)
        scores = scores.to(dtype) if same else scores
        mask, grad = wide(scores, levels), torch.randn(shape, device=device).to(dtype)
        for view in variants(weight).values():
            leaves = (view.detach().requires_grad_(), scores.clone().requires_grad_())
            y = ops.piggyback_weight(*leaves, THRESHOLD, **arguments(levels))
            dw, ds = torch.autograd.grad(y, leaves, grad)
            assert dw.dtype == dtype and ds.dtype == scores.dtype
            slope = 3.0 * mask * (1 - mask) if levels == "soft" else 1.0
            assert_close(dw, grad.double() * mask, dtype)
            assert_close(ds, grad.double() * weight.double() * slope, scores.dtype)


def test_gradients_not_asked_for_are_not_made(backend, device):
    weight, scores = inputs((5, 8), torch.float32, device)
    y = ops.piggyback_weight(weight, scores.requires_grad_(), THRESHOLD)
    y.sum().backward()
    assert torch.equal(scores.grad, weight) and weight.grad is None
    scores.grad = None
    y = ops.piggyback_weight(weight.requires_grad_(), scores.detach(), THRESHOLD)
    y.sum().backward()
    assert torch.equal(weight.grad, (scores > THRESHOLD).float())


@pytest.mark.parametrize("levels", ["binary", "ternary", "ternary_symmetric"])
def test_a_select_not_a_product(backend, device, levels):
    weight = torch.tensor([torch.inf, torch.nan, -torch.inf, 1.0], device=device)
    y = ops.piggyback_weight(weight, torch.zeros(4, device=device), 0.1, levels=levels)
    assert torch.equal(y, torch.zeros(4, device=device))
    scores = torch.full((4,), float("nan"), device=device)
    assert torch.equal(ops.piggyback_weight(weight, scores, 0.1, levels=levels), y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_alone(backend, device, dtype):
    scores = inputs((6, 35), torch.float32, device)[1].to(dtype)
    found = {
        "binary": ops.binarize(scores, THRESHOLD),
        "inclusive": ops.binarize(scores, THRESHOLD, inclusive=True),
        "ternary": ops.ternarize(scores, THRESHOLD),
        "ternary_symmetric": ops.ternarize(scores, THRESHOLD, symmetric=True),
        "topk": ops.topk_mask(scores, 0.3),
        "soft": ops.soft_mask(scores, THRESHOLD, scale=3.0),
    }
    for levels, mask in found.items():
        assert mask.dtype == dtype
        assert_close(mask, wide(scores, levels), dtype)


def test_straight_through_and_the_sigmoids_own_gradient(backend, device):
    scores = torch.randn(40, device=device, requires_grad=True)
    grad = torch.randn(40, device=device)
    straight = [ops.binarize, ops.ternarize, lambda s: ops.topk_mask(s, 0.5)]
    for op in straight:
        assert torch.equal(torch.autograd.grad(op(scores), scores, grad)[0], grad)
    (found,) = torch.autograd.grad(ops.soft_mask(scores, 0.1, scale=2.0), scores, grad)
    p = torch.sigmoid(2 * (scores.double() - 0.1))
    assert_close(found, grad.double() * 2 * p * (1 - p), torch.float32)


def test_the_originals_ternary_rule_is_not_symmetric(backend, device):
    scores = torch.tensor([-1e-6, 0.0, 5e-3, 6e-3, -1.0], device=device)
    assert ops.ternarize(scores).tolist() == [-1, 0, 0, 1, -1]
    assert ops.ternarize(scores, symmetric=True).tolist() == [0, 0, 0, 1, -1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 33, 5000])
def test_kth_largest_is_exact(backend, device, size, dtype):
    values = torch.randn(size, device=device).to(dtype)
    if size > 40:
        values[::7] = values[3]  # ties
        values[5], values[6], values[7] = torch.inf, -torch.inf, torch.nan
    for magnitude in (False, True):
        looked_at = values.abs() if magnitude else values
        order = looked_at.float().sort(descending=True).values
        for k in {1, 2, size // 3, size} - {0}:
            if k > size:
                continue
            found = ops.kth_largest(values.view(-1, 1), k, magnitude=magnitude)
            torch.testing.assert_close(found, order[k - 1], rtol=0, atol=0, equal_nan=True)
    zeros = torch.zeros(size, device=device, dtype=dtype)
    assert ops.kth_largest(zeros, size).item() == 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spread", [0.0, 1e-3, 0.3, 100.0])
def test_kth_largest_where_many_values_begin_alike(backend, device, spread, dtype):
    values = (1.5 + spread * torch.randn(9000, device=device)).to(dtype)
    values[4000:] = torch.randn(5000, device=device).to(dtype)  # some blocks have few of them
    order = values.float().sort(descending=True).values
    for k in (1, 2000, 4500, 9000):
        assert ops.kth_largest(values, k) == order[k - 1]
    values[::3] = torch.nan
    assert ops.kth_largest(values, 3000).isnan()
    assert ops.kth_largest(values, 3001) == values.float().nan_to_num(-torch.inf).max()


def test_kth_largest_of_more_than_2_to_the_24_values(device_native):
    size = 17_000_000
    values = torch.arange(size, dtype=torch.float32, device=device_native).flip(0) / size
    found = ops.kth_largest(values, 1_000_000)
    assert found == values.sort(descending=True).values[999_999]


@pytest.fixture(params=["cpu", "cuda"])
def device_native(request):
    """A device on its own backend: the interpreter would take minutes."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is false")
    return request.param


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [(1, 1, 1), (5, 33, 7), (3, 8, 70), (40, 17, 130)], ids=str)
def test_piggyback_linear(backend, device, sizes, dtype, levels):
    batch, ins, outs = sizes
    weight, scores = inputs((outs, ins), dtype, device)
    x, bias = torch.randn(batch, ins, device=device).to(dtype), torch.randn(outs, device=device)
    bias = bias.to(dtype)
    leaves = [t.clone().requires_grad_() for t in (x, weight, scores, bias)]
    y = ops.piggyback_linear(*leaves[:3], THRESHOLD, leaves[3], **arguments(levels))
    mask = wide(scores, levels)
    masked = weight.double() * mask
    terms = x.double()[:, None] * masked
    parts = torch.cat([terms, bias.double().expand(batch, outs)[..., None]], -1)
    assert_sum_close(y, parts, [-1], dtype)
    grad = torch.randn(batch, outs, device=device).to(dtype)
    dx, dw, ds, db = torch.autograd.grad(y, leaves, grad)
    g = grad.double()
    assert_sum_close(dx, g[:, :, None] * masked, [1], dtype, 2)
    product = g[:, :, None] * x.double()[:, None]
    slope = 3.0 * mask * (1 - mask) if levels == "soft" else torch.ones_like(mask)
    assert_sum_close(dw, product * mask, [0], dtype, 2)
    # Through a product that is rounded to the weight's dtype on its way.
    assert_sum_close(ds, product * weight.double() * slope, [0], dtype, 2)
    assert_sum_close(db, g, [0], dtype)
    assert ds.dtype == torch.float32


def test_piggyback_linear_shapes_strides_and_no_bias(backend, device):
    weight, scores = inputs((6, 10), torch.float32, device)
    wanted = weight * (scores > THRESHOLD)
    for shape in ((10,), (3, 10), (2, 3, 10), (0, 10), (2, 0, 10)):
        x = torch.randn(shape, device=device)
        y = ops.piggyback_linear(x, weight, scores, THRESHOLD)
        assert_close(y, F.linear(x.double(), wanted.double()), torch.float32, 4)
    x = torch.randn(4, 10, device=device)
    for w in variants(weight).values():
        for s in variants(scores).values():
            for view in variants(x).values():
                y = ops.piggyback_linear(view, w, s, THRESHOLD)
                assert_close(y, x.double() @ wanted.double().t(), torch.float32, 4)
    empty = torch.zeros(3, 0, device=device), torch.zeros(6, 0, device=device)
    y = ops.piggyback_linear(*empty, empty[1], THRESHOLD)
    assert torch.equal(y, torch.zeros(3, 6, device=device))


def test_piggyback_linear_gradients_over_many_row_blocks(backend, device):
    """More rows than a block of the blocked products holds, and a count that no block divides."""
    outs, ins = (70, 40) if backend == "triton" and device == "cpu" else (1027, 2100)
    weight, scores = inputs((outs, ins), torch.float32, device)
    x = torch.randn(9, ins, device=device)
    leaves = [t.requires_grad_() for t in (x, weight, scores)]
    y = ops.piggyback_linear(*leaves, THRESHOLD)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, grad)
    mask = (scores > THRESHOLD).double()
    masked = weight.double() * mask
    product = grad.double().t() @ x.double()
    wanted = (grad.double() @ masked, product * mask, product * weight.double())
    assert_close(y, x.double() @ masked.t(), torch.float32, 40)
    for f, w in zip(found, wanted, strict=True):
        assert_close(f, w, torch.float32, 40)


@pytest.mark.parametrize("batch", [4, 6, 13, 31, 96])
@pytest.mark.parametrize("shape", [(1, 16), (9, 1), (70, 17), (5, 70), (57, 1100)], ids=str)
def test_piggyback_linear_whose_weight_is_made_in_parts(backend, device, batch, shape):
    """Tiles that stick out of a weight which is made and multiplied some rows at a time."""
    if backend == "triton" and device == "cpu":
        shape = tuple(min(size, 70) for size in shape)
    weight, scores = inputs(shape, torch.float32, device)
    x, grad = (torch.randn(batch, size, device=device) for size in reversed(shape))
    x[0, -1] = weight[-1, 0] = torch.nan
    x[1, 0], grad[2, -1] = torch.inf, torch.nan
    for levels in ("ternary", "soft"):
        how = arguments(levels)
        leaves = [t.clone().requires_grad_() for t in (x, weight, scores)]
        found = ops.piggyback_linear(*leaves, THRESHOLD, **how)
        with backends.use_backend("reference"):
            masked = ops.piggyback_weight(*leaves[1:], THRESHOLD, **how)
        wanted = F.linear(leaves[0], masked)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3, equal_nan=True)
        right = torch.autograd.grad(wanted, leaves, grad)
        for names in ((0, 1, 2), (0,), (1,), (2,)):
            grads = torch.autograd.grad(found, [leaves[i] for i in names], grad, retain_graph=True)
            for name, each in zip(names, grads, strict=True):
                torch.testing.assert_close(each, right[name], rtol=1e-4, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("levels", ["binary", "soft"])
def test_autocast(backend, device, levels):
    weight, scores = inputs((6, 10), torch.float32, device)
    x = torch.randn(4, 10, device=device)
    leaves = [t.requires_grad_() for t in (x, weight, scores)]
    with torch.autocast(device, torch.bfloat16):
        y = ops.piggyback_linear(*leaves, THRESHOLD, **arguments(levels))
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.float().sum(), leaves)
    assert all(g.dtype == torch.float32 for g in grads)
    mask = wide(scores, levels).detach()
    assert_close(y, x.detach().double() @ (weight.detach().double() * mask).t(), torch.bfloat16, 4)


def test_gradcheck():
    with backends.use_backend("reference"):
        _gradcheck()
    if backends.BACKENDS["cpp"].absent is None:
        with backends.use_backend("cpp"):
            _gradcheck()


def _gradcheck():
    x, weight, scores = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (5, 4), (5, 4))
    )
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    soft = {"levels": "soft", "scale": 2.0}
    assert check(lambda s: ops.soft_mask(s, 0.1, scale=2.0), (scores,))
    assert check(lambda w, s: ops.piggyback_weight(w, s, 0.1, **soft), (weight, scores))
    leaves = (x, weight, scores, bias)
    assert check(lambda x, w, s, b: ops.piggyback_linear(x, w, s, 0.1, b, **soft), leaves)
    fixed = scores.detach()
    for levels in ("binary", "ternary", "ternary_symmetric"):
        assert check(lambda w, v=levels: ops.piggyback_weight(w, fixed, 0.1, levels=v), (weight,))
        assert check(
            lambda x, w, v=levels: ops.piggyback_linear(x, w, fixed, 0.1, levels=v), (x, weight)
        )


PAIR = torch.zeros(2, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (
            lambda: ops.piggyback_weight(PAIR[0], torch.zeros(3)),
            ValueError,
            r"scores has shape \[3\]",
        ),
        (lambda: ops.piggyback_weight(PAIR[0], PAIR[1].int()), TypeError, "scores is torch.int32"),
        (
            lambda: ops.piggyback_weight(PAIR[0], PAIR[1].double()),
            TypeError,
            "scores is torch.float64",
        ),
        (lambda: ops.piggyback_weight(*PAIR, levels="hard"), ValueError, "levels is 'hard'"),
        (lambda: ops.piggyback_weight(*PAIR, float("nan")), ValueError, "threshold is nan"),
        (lambda: ops.ternarize(PAIR[0], -1.0), ValueError, "threshold is -1.0, wanted at least 0"),
        (lambda: ops.piggyback_weight(*PAIR, levels="topk"), ValueError, "density is None"),
        (lambda: ops.topk_mask(PAIR[0], 1.5), ValueError, r"density is 1.5, wanted .* \(0, 1\]"),
        (
            lambda: ops.piggyback_weight(*PAIR, density=0.5),
            ValueError,
            "density is 0.5, wanted None",
        ),
        (
            lambda: ops.piggyback_weight(*PAIR, levels="ternary", inclusive=True),
            ValueError,
            "inclusive belongs to levels 'binary'",
        ),
        (lambda: ops.kth_largest(PAIR[0], 7), ValueError, "k is 7, wanted an int from 1 to 6"),
        (lambda: ops.kth_largest(PAIR[0], 0), ValueError, "k is 0"),
        (
            lambda: ops.piggyback_linear(torch.zeros(2, 4), *PAIR),
            ValueError,
            r"weight has shape \[2, 3\]",
        ),
        (
            lambda: ops.piggyback_linear(torch.zeros(2, 3).bfloat16(), *PAIR),
            TypeError,
            "weight is torch.float32, wanted x's dtype, torch.bfloat16",
        ),
        (
            lambda: ops.piggyback_linear(torch.zeros(2, 3), *PAIR, 0.1, torch.zeros(3)),
            ValueError,
            r"bias has shape \[3\], wanted \[2\]",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_reference_and_public_agree_on_levels():
    assert set(reference.LEVELS) == set(LEVELS) - {"inclusive"}
