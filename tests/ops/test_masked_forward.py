"""masked_activation and masked_linear: forward and gradients of every backend against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskcl import backends, ops
from maskcl.reference.masked_forward import ACTIVATIONS, FROM_OUTPUT
from tests.helpers import assert_close, assert_sum_close, variants

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (0, 5),
    (3, 0),
    (1, 1),
    (7, 9),
    (130, 65),
    (5, 3, 4),
    (4, 6, 3, 3),
    (2, 3, 8, 9),
    (2, 1100),
]
ACT = {
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
}


def _inputs(shape, dtype, device, channel_dim=1):
    x = torch.randn(shape, device=device).to(dtype)
    channels = shape[channel_dim]
    return x, torch.rand(channels, device=device), torch.randn(channels, device=device)


def _wide(x, mask, bias, activation, channel_dim=1):
    """The formula in float64, with act(x + b) beside it."""
    shape = [1] * x.dim()
    shape[channel_dim] = -1
    z = x.double() if bias is None else x.double() + bias.double().view(shape)
    a = ACT[activation](z)
    return a * mask.double().view(shape), a


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_matches_float64(backend, device, dtype, shape, activation):
    x, mask, bias = _inputs(shape, dtype, device)
    wanted, _ = _wide(x, mask, bias, activation)
    for kind, view in variants(x).items():
        y = ops.masked_activation(view, mask, bias, activation=activation)
        assert y.dtype == dtype and y.shape == x.shape
        assert y.stride() == torch.empty_like(view).stride(), kind
        assert_close(y, wanted, dtype)
    if x.numel():  # without bias
        y = ops.masked_activation(x, mask, activation=activation)
        assert_close(y, _wide(x, mask, None, activation)[0], dtype)


@pytest.mark.parametrize("save", ["output", "input"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_matches_float64(backend, device, dtype, shape, activation, save):
    halves = dtype in (torch.bfloat16, torch.float16) and activation in ("tanh", "sigmoid")
    if save == "output" and (activation not in FROM_OUTPUT or halves):
        says = "slope cannot be told" if halves else "no derivative from its output"
        with pytest.raises(ValueError, match=says):
            ops.masked_activation(*_inputs((2, 2), dtype, device), activation=activation, save=save)
        return
    x, mask, bias = _inputs(shape, dtype, device)
    mask = (
        mask + 0.25
    )  # float16's y / m needs m above its subnormals; closed gates have their own test
    g = torch.randn(shape, device=device).to(dtype)
    others = [d for d in range(len(shape)) if d != 1]
    for view, grad in zip(variants(x).values(), reversed(variants(g).values()), strict=True):
        leaves = [t.detach().requires_grad_() for t in (view, mask, bias)]
        y = ops.masked_activation(*leaves, activation=activation, save=save)
        dx, dm, db = torch.autograd.grad(y, leaves, grad)
        z = (x.double() + bias.double().view(1, -1, *[1] * (x.dim() - 2))).requires_grad_()
        a = ACT[activation](z)
        m = mask.double().view(1, -1, *[1] * (x.dim() - 2))
        if save == "output" and dtype != torch.float32:  # what is kept carries dtype's rounding
            a_seen = y.detach().double() / m
        else:
            a_seen = a.detach()
        (dz,) = torch.autograd.grad(a, z, g.double() * m)
        slack = 4.0 if activation == "tanh" else 1.0  # 1 - a^2 of a rounded a, as torch's own
        assert_close(dx, dz, dtype, scale=slack)
        assert_sum_close(dm, g.double() * a_seen, others, torch.float32)
        assert_sum_close(db, dz, others, dtype, scale=slack)


@pytest.mark.parametrize("channel_dim", [0, 2, -1])
def test_channel_dimension(backend, device, channel_dim):
    x, mask, bias = _inputs((5, 6, 7), torch.float32, device, channel_dim)
    leaves = [t.requires_grad_() for t in (x, mask, bias)]
    y = ops.masked_activation(*leaves, activation="gelu", channel_dim=channel_dim)
    wanted, _ = _wide(*[t.detach() for t in leaves], "gelu", channel_dim)
    assert_close(y.detach(), wanted, torch.float32)
    grads = torch.autograd.grad(y.sum(), leaves)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    for found, right in zip(
        grads, torch.autograd.grad(_wide(*wide, "gelu", channel_dim)[0].sum(), wide), strict=True
    ):
        assert_close(found, right, torch.float32, scale=20)


@pytest.mark.parametrize("activation", FROM_OUTPUT)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mask_gradient_of_nearly_closed_gates(backend, device, dtype, activation):
    """Whatever is kept, dm is within 1e-2 of float64 for |s e| <= 50 (float16 keeps its input)."""
    x, _, bias = _inputs((64, 41), dtype, device)
    mask = torch.sigmoid(torch.linspace(-50, 50, 41)).to(device).requires_grad_()
    g = torch.randn(64, 41, device=device).to(dtype)
    y = ops.masked_activation(x, mask, bias, activation=activation)
    (dm,) = torch.autograd.grad(y, mask, g)
    terms = g.double() * _wide(x, mask.detach(), bias, activation)[1]
    error = (dm.double() - terms.sum(0)).abs() / terms.abs().sum(0)
    assert error.max() < 1e-2


def test_closed_gate_has_no_mask_gradient_unless_the_input_is_kept(backend, device):
    x = torch.rand(4, 2, device=device) + 1
    mask = torch.tensor([0.0, 1.0], device=device, requires_grad=True)
    (from_output,) = torch.autograd.grad(ops.masked_activation(x, mask).sum(), mask)
    (from_input,) = torch.autograd.grad(ops.masked_activation(x, mask, save="input").sum(), mask)
    assert from_output[0] == 0 and torch.allclose(from_input, x.sum(0))
    assert torch.allclose(from_output[1], from_input[1])


@pytest.mark.parametrize("activation", FROM_OUTPUT)
def test_masks_near_zero_give_finite_gradients(backend, device, activation):
    """1 / m overflows below 2.9e-39, which a gate reaches at s e = -89."""
    mask = torch.tensor([1e-45, 1e-40, 2e-39, 1e-38, 1e-20], device=device).requires_grad_()
    x = torch.randn(8, 5, device=device, requires_grad=True)
    y = ops.masked_activation(x, mask, activation=activation)
    for grad in torch.autograd.grad(y.sum(), (x, mask)):
        assert torch.isfinite(grad).all()


def test_relu_keeps_nothing_but_its_output(backend, device):
    x, mask, bias = _inputs((8, 16), torch.float32, device)
    kept: list[int] = []

    def pack(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = ops.masked_activation(x, mask, bias)
    assert set(kept) == {y.data_ptr(), mask.data_ptr(), bias.data_ptr()}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(0, 4), (6, 4), (2, 3, 4)], ids=str)
def test_linear_equals_its_formula(backend, device, shape, activation):
    x = torch.randn(shape, device=device)
    weight, bias = torch.randn(5, 4, device=device), torch.randn(5, device=device)
    mask = torch.rand(5, device=device) + 0.1
    leaves = [t.requires_grad_() for t in (x, weight, mask, bias)]
    y = ops.masked_linear(*leaves, activation=activation)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    wanted = ACT[activation](F.linear(wide[0], wide[1], wide[3])) * wide[2]
    assert_close(y.detach(), wanted.detach(), torch.float32, scale=4)
    grad = torch.randn_like(y)
    for found, right in zip(
        torch.autograd.grad(y, leaves, grad),
        torch.autograd.grad(wanted, wide, grad.double()),
        strict=True,
    ):
        assert_close(found, right, torch.float32, scale=20)


def test_linear_takes_part_in_autocast(backend, device):
    if torch.bfloat16 not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take bfloat16")
    x, weight = (
        torch.randn(3, 4, device=device),
        torch.randn(5, 4, device=device, requires_grad=True),
    )
    mask = torch.rand(5, device=device, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = ops.masked_linear(x, weight, mask, activation="relu")
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32 and mask.grad.dtype == torch.float32


@given(
    shape=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    channel=st.integers(0, 4),
    activation=st.sampled_from(ACTIVATIONS),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(backend, device, shape, channel, activation):
    channel %= len(shape)
    x, mask, bias = _inputs(tuple(shape), torch.float32, device, channel)
    leaves = [t.requires_grad_() for t in (x, mask, bias)]
    y = ops.masked_activation(*leaves, activation=activation, channel_dim=channel)
    wanted, _ = _wide(*[t.detach() for t in leaves], activation, channel)
    assert_close(y.detach(), wanted, torch.float32)
    grads = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.isfinite(g).all() for g in grads)
    assert [g.shape for g in grads] == [t.shape for t in leaves]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(backend, device, activation):
    if torch.float64 not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take float64")

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)

    mask = (torch.rand(3, dtype=torch.float64, device=device) + 0.1).requires_grad_()
    x, weight, bias = leaf(4, 3, 2), leaf(3, 5), leaf(3)
    assert torch.autograd.gradcheck(
        lambda x, m, b: ops.masked_activation(x, m, b, activation=activation), (x, mask, bias)
    )
    assert torch.autograd.gradcheck(
        lambda x, w, m, b: ops.masked_linear(x, w, m, b, activation=activation),
        (leaf(4, 5), weight, mask, bias),
    )


X = torch.zeros(4, 3)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: ops.masked_activation(X, torch.ones(4)),
            ValueError,
            "mask has 4 elements, wanted 3",
        ),
        (lambda: ops.masked_activation(X, torch.ones(3, 1)), ValueError, "mask has shape"),
        (lambda: ops.masked_activation(X, torch.ones(3).int()), TypeError, "mask is torch.int32"),
        (lambda: ops.masked_activation(X, torch.ones(3), torch.ones(2)), ValueError, "bias has 2"),
        (
            lambda: ops.masked_activation(X, torch.ones(3), channel_dim=2),
            ValueError,
            "channel_dim is 2",
        ),
        (lambda: ops.masked_activation(X, torch.ones(3), activation="mish"), ValueError, "'mish'"),
        (lambda: ops.masked_activation(X, torch.ones(3), save="y"), ValueError, "save is 'y'"),
        (
            lambda: ops.masked_linear(X, torch.ones(5, 4), torch.ones(5)),
            ValueError,
            "weight has shape",
        ),
        (
            lambda: ops.masked_linear(X, torch.ones(5, 3), torch.ones(4)),
            ValueError,
            "wanted 5 channels",
        ),
        (
            lambda: ops.masked_activation(X, torch.ones(3, device="meta")),
            ValueError,
            "mask is on meta, wanted x's device, cpu",
        ),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()
