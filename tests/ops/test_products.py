"""What all products promise: float32 sums, sums of nothing, and nothing read beside an operand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskcl import backends, ops
from tests.ops.conftest import with_reference

backend = with_reference()
HALVES = [torch.bfloat16, torch.float16]


def assert_rounded_once(found: torch.Tensor, wanted: torch.Tensor) -> None:
    """``found`` is a half-precision neighbour of ``wanted`` (float64), the nearer but for ties."""
    exponent = torch.frexp(wanted).exponent
    ulp = torch.ldexp(torch.full_like(wanted, torch.finfo(found.dtype).eps), exponent - 1)
    error = (found.double() - wanted).abs() / ulp
    assert error.max() < 0.52, error.max()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("rows", [40, 200])
def test_half_precision_sums_are_rounded_once(backend, device, dtype, rows):
    """Over several blocks of the weight's rows: positive terms, whose partial sums grow."""
    outs, ins = (70, 40) if backend == "triton" and device == "cpu" else (5000, 2100)
    w, bias = torch.rand(outs, ins, device=device), torch.rand(outs, device=device)
    x, g = torch.rand(rows, ins, device=device), torch.rand(rows, outs, device=device) / 64
    w, bias, x, g = (t.to(dtype) for t in (w / 64, bias, x, g))
    scores = torch.rand(outs, ins, device=device)
    masked = torch.where(scores > 0.5, w, 0).double()
    words = ops.pack_scores(scores, 0.5)
    leaf = x.clone().requires_grad_()
    right, right_dx = F.linear(x.double(), masked, bias.double()), g.double() @ masked
    for op in ("piggyback", "packed"):
        if op == "piggyback":
            y = ops.piggyback_linear(leaf, w, scores, 0.5, bias)
        else:
            y = ops.packed_linear(leaf, w, words, bias)
        assert_rounded_once(y.detach(), right)
        (dx,) = torch.autograd.grad(y, leaf, g)
        assert_rounded_once(dx, right_dx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5, 40, 300])
def test_sums_of_no_terms_are_the_bias_or_0(backend, device, dtype, rows):
    def zeros(*shape):
        return torch.zeros(*shape, dtype=dtype, device=device)

    for outs in (0, 1, 37):
        x, w, bias = zeros(rows, 0), zeros(outs, 0), torch.rand(outs, device=device).to(dtype)
        scores, words = zeros(outs, 0), torch.zeros(0, dtype=torch.int32, device=device)
        run = backends.select("open_linear", x)
        mask = torch.rand(outs, device=device, requires_grad=True)
        for b in (bias, None):
            wanted = F.linear(x, w, b)
            assert torch.equal(ops.piggyback_linear(x, w, scores, 0.1, b), wanted)
            assert torch.equal(ops.packed_linear(x, w, words, b), wanted)
            assert torch.equal(ops.packed_linear(x, w, words.expand(2, 0), b), wanted)
            assert torch.equal(run(x, w, b, False), wanted)
            assert torch.equal(run(x, w, b, True), wanted)
            y = ops.masked_linear(x, w, mask, b)
            assert torch.equal(y, (wanted.float() * mask).to(dtype))
        # Of no outputs: the gradient of x is a sum of nothing.
        g, x, w = zeros(rows, 0), zeros(rows, 6), zeros(0, 6)
        dx, dw = backends.select("open_linear_backward", x)(g, x, w, True, True)
        assert torch.equal(dx, zeros(rows, 6)) and dw.shape == (0, 6)
        x.requires_grad_()
        y = ops.piggyback_linear(x, w, zeros(0, 6), 0.1)
        assert torch.equal(torch.autograd.grad(y, x, g)[0], zeros(rows, 6))
        y = ops.packed_linear(x, w, words)
        assert torch.equal(torch.autograd.grad(y, x, g)[0], zeros(rows, 6))
    # Of no samples: the gradients of weights are.
    g, x = zeros(0, 4), zeros(0, 6)
    w, scores = (zeros(4, 6).requires_grad_() for _ in range(2))
    assert torch.equal(
        backends.select("open_linear_backward", x)(g, x, w, True, True)[1], zeros(4, 6)
    )
    y = ops.piggyback_linear(x, w, scores, 0.1)
    for grad in torch.autograd.grad(y, (w, scores), g):
        assert torch.equal(grad, zeros(4, 6))
    for shape in ((0,), (0, 3), (2, 0)):
        found = ops.linear_importance(zeros(*shape, 6), zeros(*shape, 4))
        assert torch.equal(found, torch.zeros(4, 6, device=device))


def beside_nan(t: torch.Tensor) -> torch.Tensor:
    padded = torch.full((t.shape[0] + 1, t.shape[1] + 13), torch.nan, dtype=t.dtype)
    padded[: t.shape[0], : t.shape[1]] = t
    return padded[: t.shape[0], : t.shape[1]].to(t.device)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("rows", [3, 37, 130])
def test_nothing_is_read_beside_a_slice(backend, device, dtype, rows):
    """oneDNN's bfloat16 products do, on CPUs with AMX, where the terms are no multiple of 32."""
    if backend == "reference":
        pytest.skip("torch's own products")
    for ins, outs in ((50, 41), (97, 70), (17, 130), (64, 64)):
        x, g, w = (torch.randn(*s, device=device) for s in ((rows, ins), (rows, outs), (outs, ins)))
        x, g, w = (t.to(dtype) for t in (x, g, w))
        bias = torch.randn(outs, device=device).to(dtype)
        run = backends.select("open_linear", x)
        back = backends.select("open_linear_backward", x)
        for ordinary in (False, True):
            for b in (bias, None):
                found = run(beside_nan(x), beside_nan(w), b, ordinary)
                torch.testing.assert_close(found, run(x, w, b, ordinary), rtol=2e-2, atol=2e-1)
        found, wanted = (back(*t, True, True) for t in (map(beside_nan, (g, x, w)), (g, x, w)))
        for f, right in zip(found, wanted, strict=True):
            torch.testing.assert_close(f, right, rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_a_sample_s_nan_stays_its_own(backend, device, dtype):
    """The next row is what lies behind a row."""
    if backend == "reference":
        pytest.skip("torch's own products")
    for ins in (50, 97, 64):
        w, scores = (
            torch.randn(70, ins, device=device).to(dtype),
            torch.ones(70, ins, device=device),
        )
        words = ops.pack_mask(scores)
        for rows in (37, 130):
            x = torch.randn(rows, ins, device=device).to(dtype)
            x[5] = torch.nan
            wanted = [n == 5 for n in range(rows)]
            for y in (
                backends.select("open_linear", x)(x, w, None, False),
                backends.select("open_linear", x)(x, w, None, True),
                ops.piggyback_linear(x, w, scores, 0.5),
                ops.packed_linear(x, w, words),
            ):
                assert y.isnan().any(1).tolist() == wanted and y.isnan().all(1).tolist() == wanted


def test_the_bits_are_those_of_an_ordinary_layer():
    """In bfloat16 whatever its rows are copied to, and slices too."""
    for ins in (10, 31, 50, 64, 97, 784):
        for rows, outs in ((1, 10), (40, 33), (130, 300)):
            x, w = torch.randn(rows, ins + 9).bfloat16(), torch.randn(outs, ins).bfloat16()
            b = torch.randn(outs).bfloat16()
            for view in (x[:, :ins], x[:, :ins].contiguous()):
                for bias in (b, None):
                    found = torch.ops.maskcl.open_linear(view, w, bias, True)
                    assert torch.equal(found, F.linear(view, w, bias))
