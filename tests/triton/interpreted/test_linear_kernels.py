"""Triton's product with activation and mask in its epilogue, interpreted, against float64."""

import pytest
import torch

from maskcl.reference.masked_forward import ACTIVATIONS, activate
from maskcl.triton import _linear, masked_products
from maskcl.triton.masked_products import masked_linears

# N, I, O: ragged tiles along each, several tiles along each, one row, one column.
SHAPES = [(5, 33, 40), (70, 64, 96), (1, 48, 130), (37, 200, 1)]
# The interpreter cuts digits off for bfloat16, where a GPU rounds.
ROUNDING = {torch.float32: 5e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Small products too, which on a GPU go to the library."""
    monkeypatch.setattr(_linear, "PROGRAMS", 1)


def case(shape, dtype, rng):
    rows, ins, outs = shape
    x, weight, bias = (
        torch.randn(s, generator=rng).to(dtype) for s in ((rows, ins), (outs, ins), (outs,))
    )
    mask = torch.rand(outs, generator=rng)
    mask[0] = 0
    return x, weight, bias, mask


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_dtypes(shape, dtype, with_bias, rng):
    x, weight, bias, mask = case(shape, dtype, rng)
    found = _linear.masked_linear(x, weight, bias if with_bias else None, mask, "relu", 0.0)
    z = x.double() @ weight.double().T + (bias.double() if with_bias else 0.0)
    wanted = z.clamp_min(0) * mask.double()
    assert found is not None and found.dtype == dtype
    error = (found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-3)
    assert float(error) <= 4 * ROUNDING[dtype]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation, rng):
    x, weight, bias, mask = case((9, 20, 50), torch.float32, rng)
    found = _linear.masked_linear(x, weight, bias, mask, activation, 0.1)
    z = x.double() @ weight.double().T + bias.double()
    wanted = activate(z, activation, 0.1) * mask.double()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_strided_operands(rng):
    x, weight, bias, mask = case((9, 40, 60), torch.float32, rng)
    views = x[:, ::2], weight[::2, :20], bias[::2], mask[::2]
    wanted = _linear.masked_linear(*(view.clone() for view in views), "relu", 0.0)
    found = _linear.masked_linear(*views, "relu", 0.0)
    assert torch.equal(found, wanted)


def test_a_run_takes_it_where_it_fills_a_gpu(monkeypatch, rng):
    x, weight, bias, mask = case((40, 24, 64), torch.float32, rng)
    taken = []
    inner = _linear.masked_linear
    monkeypatch.setattr(
        masked_products, "masked_linear", lambda *args: (taken.append(inner(*args)), taken[-1])[1]
    )
    run = [weight, torch.randn(30, 64, generator=rng)], [bias, bias[:0]], [mask, mask[:30]]
    first = masked_linears(x, *run, "relu", 0.0)
    assert all(y is not None for y in taken)
    monkeypatch.setattr(_linear, "PROGRAMS", 10**6)
    taken.clear()
    again = masked_linears(x, *run, "relu", 0.0)
    assert taken == [None, None]
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
