"""Runs of masked linear layers in one call each way: against float64, and layer by layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskcl import backends, ops, reference
from maskcl.ops.gate import Gate, hat_gates
from maskcl.ops.gated_products import gated_linears
from maskcl.ops.masked_runs import masked_linears
from tests.helpers import TOLERANCE, variants
from tests.ops.test_masked_forward import ACT

WIDTHS = (24, 40, 33, 8)


def layers(device, dtype, share=0.5, biases=True, widths=WIDTHS):
    """Weights, biases and masks of which ``share`` are open, each of them a leaf."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [torch.randn(o, i) / i**0.5 for o, i in pairs]
    masks = [(torch.rand(o) + 0.25) * (torch.rand(o) < share) for o, _ in pairs]
    vectors = [torch.randn(o) if biases else None for o, _ in pairs]
    return (
        [w.to(device, dtype).requires_grad_() for w in weights],
        [None if b is None else b.to(device, dtype).requires_grad_() for b in vectors],
        [m.to(device, wide).requires_grad_() for m in masks],
    )


def one_by_one(x, weights, biases, masks, activation):
    for weight, bias, mask in zip(weights, biases, masks, strict=True):
        x = ACT[activation](F.linear(x, weight, bias)) * mask
    return x


def compare(x, parts, activation, dtype):
    """Outputs and gradients against float64, of the largest of each."""
    leaves = [x, *(t for part in parts for t in part if t is not None)]
    y = masked_linears(x, *parts, activation, 0.01)
    g = torch.randn(y.shape, device=y.device).to(y.dtype)
    found = [y, *torch.autograd.grad(y, leaves, g)]
    copies = {id(t): t.detach().double().requires_grad_() for t in leaves}
    wide = [[None if t is None else copies[id(t)] for t in part] for part in parts]
    right = one_by_one(copies[id(x)], *wide, activation)
    wanted = [right, *torch.autograd.grad(right, list(copies.values()), g.double())]
    for t, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape
        if t > 0 and any(leaves[t - 1] is mask for mask in parts[2]):
            b = torch.where(leaves[t - 1] == 0, 0.0, b)  # a closed gate learns from eq. 5 alone
        error = float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30))
        assert error <= 8 * TOLERANCE[dtype], (t, error)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("batch", [1, 7, 33, 130])
def test_any_share_of_open_units(backend, device, batch, share):
    x = torch.randn(batch, WIDTHS[0], device=device, requires_grad=True)
    compare(x, layers(device, torch.float32, share), "relu", torch.float32)


@pytest.mark.parametrize("batch", [4, 6, 13, 31])
@pytest.mark.parametrize("widths", [(1, 9, 16), (17, 70, 5), (64, 33, 100, 2), (5, 32, 31, 15)])
def test_few_rows_of_any_width(backend, device, batch, widths):
    """Tiles that stick out of a matrix, on every side and for every width of vectors."""
    x = torch.randn(batch, widths[0], device=device, requires_grad=True)
    compare(x, layers(device, torch.float32, 0.6, widths=widths), "relu", torch.float32)


@pytest.mark.parametrize("activation", reference.masked_forward.FROM_OUTPUT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_every_activation_whose_slope_the_output_tells(backend, device, dtype, activation):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    x = torch.randn(40, WIDTHS[0], device=device, dtype=dtype, requires_grad=True)
    compare(x, layers(device, dtype), activation, dtype)


def test_half_precision_and_no_bias(backend, device):
    x = torch.randn(40, WIDTHS[0], device=device, dtype=torch.bfloat16, requires_grad=True)
    # Through identity: a relu whose input rounds to another sign has another gradient, rightly.
    compare(x, layers(device, torch.bfloat16, biases=False), "identity", torch.bfloat16)


@pytest.mark.parametrize("shape", [(WIDTHS[0],), (3, 5, WIDTHS[0]), (0, WIDTHS[0])])
def test_further_dimensions(backend, device, shape):
    x = torch.randn(shape, device=device, requires_grad=True)
    parts = layers(device, torch.float32)
    y = masked_linears(x, *parts, "relu", 0.0)
    wanted = one_by_one(x, *parts, "relu")
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad(y.sum(), x)
    (wanted,) = torch.autograd.grad(wanted.sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_strided_inputs_and_weights(backend, device):
    x = torch.randn(34, WIDTHS[0], device=device)
    weights, biases, masks = ([t.detach() for t in part] for part in layers(device, torch.float32))
    y = masked_linears(x, weights, biases, masks, "relu", 0.0)
    for name, other in variants(x).items():
        again = masked_linears(other, weights, biases, masks, "relu", 0.0)
        torch.testing.assert_close(again, y, rtol=1e-5, atol=1e-6, msg=name)
    for name, other in variants(weights[1]).items():
        changed = [weights[0], other, weights[2]]
        again = masked_linears(x, changed, biases, masks, "relu", 0.0)
        torch.testing.assert_close(again, y, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("batch", [4, 21, 48])
def test_what_closed_units_hold_meets_nothing(backend, device, batch):
    """In C++, for 4 rows or more: neither closed units' weights count nor those behind them."""
    if backend != "cpp":
        pytest.skip(f"{backend} multiplies closed units")
    x = torch.randn(batch, WIDTHS[0], requires_grad=True)
    weights, biases, masks = layers(device, torch.float32, share=0.4)
    y = masked_linears(x, weights, biases, masks, "relu", 0.0)
    grads = torch.autograd.grad(y.sum(), [x, *weights[:2]])
    with torch.no_grad():
        closed = masks[0] == 0
        weights[0][closed] = float("nan")
        weights[1][:, closed] = float("nan")
    again = masked_linears(x, weights, biases, masks, "relu", 0.0)
    assert torch.equal(again, y)
    for found, wanted in zip(
        torch.autograd.grad(again.sum(), [x, *weights[:2]]), grads, strict=True
    ):
        assert torch.equal(found, wanted)


def test_only_what_is_asked_for_is_computed(backend, device):
    x = torch.randn(40, WIDTHS[0], device=device)
    weights, biases, masks = layers(device, torch.float32)
    weights[1].requires_grad_(False)
    biases[0].requires_grad_(False)
    masks[2].requires_grad_(False)
    y = masked_linears(x, weights, biases, masks, "relu", 0.0)
    y.sum().backward()
    assert weights[1].grad is None and biases[0].grad is None and masks[2].grad is None
    wanted = one_by_one(x, weights, biases, masks, "relu")
    for leaf in (weights[0], weights[2], biases[1], biases[2], masks[0]):
        (right,) = torch.autograd.grad(wanted.sum(), leaf, retain_graph=True)
        right = torch.where(leaf == 0, 0.0, right) if leaf is masks[0] else right
        torch.testing.assert_close(leaf.grad, right, rtol=1e-4, atol=1e-4)


def test_gradcheck_and_transforms(backend, device):
    if torch.float64 not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take float64")
    x = torch.randn(5, 6, dtype=torch.float64, device=device, requires_grad=True)
    parts = layers(device, torch.float64, share=1.0, widths=(6, 5, 4))
    flat = [t for part in parts for t in part]

    def run(x, *flat):
        return masked_linears(x, flat[:2], flat[2:4], flat[4:], "tanh", 0.0)

    assert torch.autograd.gradcheck(run, (x, *flat))
    by_transform = torch.func.grad(lambda x: run(x, *flat).sum())(x)
    (wanted,) = torch.autograd.grad(run(x, *flat).sum(), x)
    torch.testing.assert_close(by_transform, wanted)


def test_compiles_to_one_graph_with_the_same_gradients(backend, device):
    x = torch.randn(40, WIDTHS[0], device=device, requires_grad=True)
    parts = layers(device, torch.float32)
    leaves = [x, *(t for part in parts for t in part)]

    def run(x):
        return masked_linears(x, *parts, "relu", 0.0).square().sum()

    wanted = torch.autograd.grad(run(x), leaves)
    found = torch.autograd.grad(torch.compile(run, fullgraph=True)(x), leaves)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_backward_twice_raises(backend, device):
    x = torch.randn(4, WIDTHS[0], device=device, requires_grad=True)
    y = masked_linears(x, *layers(device, torch.float32), "relu", 0.0)
    (g,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative only"):
        g.sum().backward()


def test_masked_linear_is_a_run_of_one(backend, device):
    x = torch.randn(40, WIDTHS[0], device=device)
    (w, *_), (b, *_), (m, *_) = layers(device, torch.float32)
    y = ops.masked_linear(x, w, m, b, activation="relu")
    assert torch.equal(y, masked_linears(x, [w], [b], [m], "relu", 0.01))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 40])
def test_a_mask_less_leaves_the_last_layer_ordinary(backend, device, batch, dtype):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    x = torch.randn(batch, WIDTHS[0], device=device, dtype=dtype, requires_grad=True)
    weights, biases, masks = layers(device, dtype)
    activation = "identity" if dtype == torch.bfloat16 else "tanh"
    y = masked_linears(x, weights, biases, masks[:-1], activation, 0.0)
    inner = masked_linears(x, weights[:-1], biases[:-1], masks[:-1], activation, 0.0)
    wanted = F.linear(inner, weights[-1], biases[-1])
    leaves = [x, *weights, *biases, *masks[:-1]]
    g = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, leaves, g)]
    right = [wanted, *torch.autograd.grad(wanted, leaves, g)]
    for a, b in zip(found, right, strict=True):
        error = float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-30))
        assert a.dtype == b.dtype and error <= 8 * TOLERANCE[dtype]


def gated(device, sizes=WIDTHS[1:3]):
    """Arguments of gated_linears behind the layers, its embedding a leaf."""
    units = sum(sizes)
    embedding = torch.randn(units, device=device).requires_grad_()
    share = torch.rand(units, device=device) / units
    scale = torch.tensor(4.0, device=device)
    return embedding, scale, share, list(sizes), Gate.of(torch.float32, 400.0, 50.0, "exact", 0.7)


def two_nodes(x, weights, biases, gates, activation):
    masks, term = hat_gates(*gates)
    return masked_linears(x, weights, biases, masks, activation, 0.0), term, torch.cat(masks)


@pytest.mark.parametrize("sizes", [WIDTHS[1:3], WIDTHS[1:]], ids=["head", "all"])
@pytest.mark.parametrize("shape", [(40, WIDTHS[0]), (2, 3, WIDTHS[0]), (WIDTHS[0],)], ids=str)
@pytest.mark.parametrize("of", ["output and term", "output", "term", "masks", "all"])
def test_gates_and_layers_in_one_node_are_those_in_two(backend, device, of, shape, sizes):
    x = torch.randn(shape, device=device, requires_grad=True)
    weights, biases, _ = layers(device, torch.float32)
    gates = gated(device, sizes=sizes)
    leaves = [x, *weights, *biases, gates[0]]

    def loss(y, term, mask):
        parts = {"output": y.square().sum(), "term": term, "masks": mask.square().sum()}
        wanted = list(parts) if of == "all" else of.split(" and ")
        return sum(part for name, part in parts.items() if name in wanted)

    one = gated_linears(x, weights, biases, gates, "relu", 0.0)
    two = two_nodes(x, weights, biases, gates, "relu")
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a, b)
    found, wanted = (torch.autograd.grad(loss(*r), leaves, allow_unused=True) for r in (one, two))
    for a, b in zip(found, wanted, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_one_node_computes_only_what_is_asked_for(backend, device):
    x = torch.randn(40, WIDTHS[0], device=device)
    weights, biases, _ = layers(device, torch.float32)
    weights[1].requires_grad_(False)
    biases[0].requires_grad_(False)
    gates = gated(device)
    y, term, _ = gated_linears(x, weights, biases, gates, "relu", 0.0)
    (y.sum() + term).backward()
    assert weights[1].grad is None and biases[0].grad is None
    again, term, _ = two_nodes(x, weights, biases, gates, "relu")
    for leaf in (weights[0], weights[2], biases[1], biases[2], gates[0]):
        (right,) = torch.autograd.grad(again.sum() + term, leaf, retain_graph=True)
        torch.testing.assert_close(leaf.grad, right, rtol=1e-5, atol=1e-6)


def test_one_node_in_transforms_and_in_a_compiled_graph(backend, device):
    x = torch.randn(5, WIDTHS[0], device=device)
    weights, biases, _ = layers(device, torch.float32)
    gates = gated(device)

    def loss(x):
        y, term, _ = gated_linears(x, weights, biases, gates, "tanh", 0.0)
        return y.square().sum() + term

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x), wanted)
    torch.testing.assert_close(torch.compile(loss, fullgraph=True)(x), loss(x))
