"""Runs of piggyback layers as one node: against float64, and to the bit layer by layer."""

from __future__ import annotations

import pytest
import torch

from maskcl import backends, ops
from maskcl.ops.piggyback_runs import piggyback_linears
from maskcl.reference.weight_mask import mask_values
from tests.helpers import TOLERANCE
from tests.ops.conftest import with_reference

WIDTHS = (24, 40, 33, 8)
RELUS = [(True, True, False), (True, False, True)]

backend = with_reference()


def layers(device, dtype):
    """Weights, scores, which are leaves, and biases, of which the second layer has none."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights, scores, biases = [], [], []
    for outs, ins in zip(WIDTHS[1:], WIDTHS[:-1], strict=True):
        weights.append((torch.randn(outs, ins) / ins**0.5).to(device, dtype))
        scores.append(torch.randn(outs, ins).to(device, wide).requires_grad_())
        biases.append(torch.randn(outs).to(device, dtype))
    return weights, scores, [biases[0], None, biases[2]]


def select(levels="binary"):
    return None, levels, 0.1, False, 2.0 if levels == "soft" else 1.0


def one_by_one(x, parts, relus, levels="binary"):
    scale = select(levels)[-1]
    for weight, scores, bias, relu in zip(*parts, relus, strict=True):
        x = ops.piggyback_linear(x, weight, scores, 0.1, bias, levels=levels, scale=scale)
        x = torch.relu(x) if relu else x
    return x


@pytest.mark.parametrize("levels", ["binary", "ternary", "ternary_symmetric", "soft"])
@pytest.mark.parametrize("relus", RELUS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_bits_of_one_layer_after_the_other(backend, device, dtype, relus, levels):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    x = torch.randn(16, WIDTHS[0], device=device).to(dtype).requires_grad_()
    parts = layers(device, dtype)
    y = piggyback_linears(x, *parts, relus, select(levels))
    wanted = one_by_one(x, parts, relus, levels)
    assert torch.equal(y, wanted)
    g = torch.randn(y.shape, device=device).to(dtype)
    found = torch.autograd.grad(y, [x, *parts[1]], g)
    for a, b in zip(found, torch.autograd.grad(wanted, [x, *parts[1]], g), strict=True):
        assert torch.equal(a, b)


def test_against_float64(backend, device):
    x = torch.randn(16, WIDTHS[0], device=device, requires_grad=True)
    weights, scores, biases = layers(device, torch.float32)
    relus = RELUS[0]
    y = piggyback_linears(x, weights, scores, biases, relus, select())
    g = torch.randn(y.shape, device=device)
    found = [y, *torch.autograd.grad(y, [x, *scores], g)]
    wide = x.detach().double().requires_grad_()
    masked = [
        (w * mask_values(s.detach(), *select())).double().requires_grad_()
        for w, s in zip(weights, scores, strict=True)
    ]
    right = wide
    for weight, bias, relu in zip(masked, biases, relus, strict=True):
        right = torch.nn.functional.linear(right, weight, None if bias is None else bias.double())
        right = torch.relu(right) if relu else right
    dx, *dweights = torch.autograd.grad(right, [wide, *masked], g.double())
    dscores = [d * w for d, w in zip(dweights, weights, strict=True)]  # straight through
    for a, b in zip(found, [right, dx, *dscores], strict=True):
        error = float((a.double() - b).abs().max() / b.abs().max())
        assert error <= 8 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("wanted", [(), (1,), (0, 2)], ids=str)
@pytest.mark.parametrize("want_x", [False, True])
def test_only_what_is_asked_for_is_computed(backend, device, want_x, wanted):
    x = torch.randn(16, WIDTHS[0], device=device, requires_grad=want_x)
    parts = layers(device, torch.float32)
    for i, scores in enumerate(parts[1]):
        scores.requires_grad_(i in wanted)
    parts[0][2].requires_grad_()  # a weight that somebody has thawed still learns nothing
    y = piggyback_linears(x, *parts, RELUS[0], select())
    y.sum().backward()
    assert (x.grad is not None) == want_x and parts[0][2].grad is None
    assert [i for i, scores in enumerate(parts[1]) if scores.grad is not None] == list(wanted)


def test_transforms_and_second_derivatives(backend, device):
    x = torch.randn(5, WIDTHS[0], device=device)
    weights, scores, biases = layers(device, torch.float32)

    def loss(*scores):
        return piggyback_linears(x, weights, scores, biases, RELUS[0], select()).square().sum()

    found = torch.func.grad(loss, argnums=(0, 1, 2))(*scores)
    wanted = torch.autograd.grad(loss(*scores), scores, create_graph=True)
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="first derivative only"):
        wanted[0].sum().backward()


def test_a_last_output_without_relu_may_be_written_over(backend, device):
    x = torch.randn(5, WIDTHS[0], device=device)
    parts = layers(device, torch.float32)
    y = piggyback_linears(x, *parts, RELUS[0], select())
    y.mul_(2.0).sum().backward()
    assert parts[1][0].grad is not None
