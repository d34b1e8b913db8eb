"""What backward keeps is enough: gradients against float64, for saturated units and odd masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskcl import backends, ops
from maskcl.reference.masked_forward import ACTIVATIONS
from tests.ops.conftest import with_reference
from tests.ops.test_masked_forward import ACT

backend = with_reference()
# Of the largest gradient: some roundings of the dtype that dx is in, and of sums in float32.
ERROR = {
    torch.float64: 2e-14,
    torch.float32: 4e-6,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}
MASKS = [0.0, 1e-30, 1e-10, 0.5, 0.999, 1.0, -0.7]
FORMS = [*((name, 0.01) for name in ACTIVATIONS), ("leaky_relu", -0.5), ("leaky_relu", 0.0)]


def act(name: str, x: torch.Tensor, slope: float) -> torch.Tensor:
    return F.leaky_relu(x, slope) if name == "leaky_relu" else ACT[name](x)


def check(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, size: float = 0) -> None:
    """``size``: of the terms with a slope of 1; float32's 1 - a^2 is right to a rounding of 1."""
    largest = float(wanted.abs().max())
    least = 2.0**-24 if dtype == torch.float16 else 0.0  # its smallest number
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    bound = ERROR[dtype] * largest + least + 4 * torch.finfo(wide).eps * size
    assert float((found.double() - wanted).abs().max()) <= bound


@pytest.mark.parametrize("shift", [0.0, 6.0], ids=["around 0", "saturated"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("activation", "slope"), FORMS)
@pytest.mark.parametrize("dtype", ERROR, ids=str)
def test_gradients_are_float64_s(backend, device, dtype, activation, slope, mask, shift):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, g = ((torch.randn(64, 24) + shift).to(device, dtype) for _ in range(2))
    m, b = torch.full((24,), mask, dtype=wide, device=device), torch.randn(24).to(device, dtype)
    leaves = [t.requires_grad_() for t in (x, m, b)]
    options = {"activation": activation, "negative_slope": slope}
    y = ops.masked_activation(*leaves, **options)
    dx, dm, db = torch.autograd.grad(y, leaves, g)
    copies = [t.detach().double().requires_grad_() for t in leaves]
    right = act(activation, copies[0] + copies[2], slope) * copies[1]
    wanted = torch.autograd.grad(right, copies, g.double())
    sizes = g.abs().double() * abs(mask)
    check(dx, wanted[0], dtype, float(sizes.max()))
    check(db, wanted[2], dtype, float(sizes.sum(0).max()))
    if mask != 0:  # through a closed gate nothing is learnt where the output is kept
        check(dm, wanted[1], max(dtype, torch.float32, key=lambda d: ERROR[d]))


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_keep_the_input_of_saturating_activations_too(backend, device, dtype, activation):
    x, weight = torch.randn(32, 16).to(device, dtype), torch.randn(8, 16).to(device, dtype)
    images, filters = torch.randn(2, 4, 6, 6).to(device, dtype), torch.randn(8, 4, 3, 3).to(device)
    bias, mask = torch.full((8,), 5.0).to(device, dtype), torch.full((8,), 0.999, device=device)
    for mask_learns in (False, True):
        mask = mask.detach().requires_grad_(mask_learns)
        for y, z in (
            (
                ops.masked_linear(x.requires_grad_(), weight, mask, bias, activation=activation),
                F.linear(x, weight, bias),
            ),
            (
                ops.masked_conv(
                    images.requires_grad_(),
                    filters.to(dtype),
                    mask,
                    bias,
                    activation=activation,
                ),
                F.conv2d(images, filters.to(dtype), bias),
            ),
        ):
            leaf = x if y.dim() == 2 else images
            slope = torch.sigmoid(z.double()) if activation == "sigmoid" else torch.tanh(z.double())
            slope = slope * (1 - slope) if activation == "sigmoid" else 1 - slope**2
            g = torch.ones_like(y)
            (found,) = torch.autograd.grad(y, leaf, g)
            (wanted,) = torch.autograd.grad(z, leaf, (slope * 0.999).to(dtype))
            error = (found.double() - wanted.double()).norm() / wanted.double().norm()
            assert float(error) < 2e-2


REFUSED = [
    *(("float32", name, 0.01) for name in ("gelu", "gelu_tanh", "silu")),
    *((half, name, 0.01) for half in ("bfloat16", "float16") for name in ("tanh", "sigmoid")),
    *((dtype, "leaky_relu", -0.5) for dtype in ("float32", "bfloat16", "float64")),
]


@pytest.mark.parametrize(("dtype", "activation", "slope"), REFUSED)
def test_an_output_that_cannot_do_is_refused(dtype, activation, slope):
    dtype = getattr(torch, dtype)
    x, m = torch.randn(4, 3).to(dtype), torch.rand(3)
    weight, filters = torch.randn(3, 3).to(dtype), torch.randn(3, 2, 1, 1).to(dtype)
    options = {"activation": activation, "negative_slope": slope, "save": "output"}
    for op, call in {
        "masked_activation": lambda: ops.masked_activation(x, m, **options),
        "masked_linear": lambda: ops.masked_linear(x, weight, m, **options),
        "masked_conv": lambda: ops.masked_conv(
            torch.randn(1, 2, 3, 3).to(dtype), filters, m, **options
        ),
    }.items():
        with pytest.raises(ValueError, match=rf"{op}: save is 'output', but \w+"):
            call()


def test_a_dtype_of_autocast_counts():
    x, weight, m = torch.randn(4, 3), torch.randn(3, 3), torch.rand(3)
    images, filters = torch.randn(1, 2, 3, 3), torch.randn(3, 2, 1, 1)
    options = {"activation": "tanh", "save": "output"}
    ops.masked_linear(x, weight, m, **options)
    ops.masked_conv(images, filters, m, **options)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match=r"slope cannot be told from an output in torch\.bf"):
            ops.masked_linear(x, weight, m, **options)
        with pytest.raises(ValueError, match=r"slope cannot be told from an output in torch\.bf"):
            ops.masked_conv(images, filters, m, **options)
