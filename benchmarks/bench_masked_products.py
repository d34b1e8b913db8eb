"""Runs of masked linear layers in small networks, forward + backward, where a call is the cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.conftest import device
from maskcl import ops
from maskcl.ops.masked_runs import masked_linears

NAMES = ["one run", "layer by layer", "eager relu(linear) m", "linear + relu, no mask"]
SIZES = {
    "64-200-200, batch 16": (16, (64, 200, 200)),
    "784-400-400, batch 64": (64, (784, 400, 400)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", SIZES)
def test_run(timed, size, name):
    """Two layers, 60 % of the units open."""
    batch, widths = SIZES[size]
    x = torch.randn(batch, widths[0], device=device())
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    weights = [torch.randn(o, i, device=device(), requires_grad=True) for o, i in pairs]
    biases = [torch.randn(o, device=device(), requires_grad=True) for o, _ in pairs]
    masks = [(torch.rand(o, device=device()) < 0.6).float().requires_grad_() for o, _ in pairs]

    def each(layer):
        y = x
        for w, b, m in zip(weights, biases, masks, strict=True):
            y = layer(y, w, b, m)
        return y

    functions = {
        "one run": lambda: masked_linears(x, weights, biases, masks, "relu", 0.0),
        "layer by layer": lambda: each(
            lambda y, w, b, m: ops.masked_linear(y, w, m, b, activation="relu")
        ),
        "eager relu(linear) m": lambda: each(lambda y, w, b, m: F.relu(F.linear(y, w, b)) * m),
        "linear + relu, no mask": lambda: each(lambda y, w, b, m: F.relu(F.linear(y, w, b))),
    }
    leaves = [*weights, *biases] + ([] if name.startswith("linear") else masks)
    grad = torch.randn(batch, widths[-1], device=device())
    timed(
        f"run of masked layers, {size}",
        name,
        lambda: torch.autograd.grad(functions[name](), leaves, grad),
    )


@pytest.mark.parametrize("name", ["maskcl", "eager relu(linear) m", "F.linear"])
def test_one_call(timed, name):
    """What a call costs: [1, 8] to 8, forward + backward."""
    x = torch.randn(1, 8, device=device())
    w, b, m = (
        torch.rand(*shape, device=device()).requires_grad_() for shape in ((8, 8), (8,), (8,))
    )
    functions = {
        "maskcl": lambda: ops.masked_linear(x, w, m, b, activation="relu"),
        "eager relu(linear) m": lambda: F.relu(F.linear(x, w, b)) * m,
        "F.linear": lambda: F.linear(x, w, b),
    }
    leaves = [w, b] if name == "F.linear" else [w, b, m]
    grad = torch.ones(1, 8, device=device())
    timed(
        "masked_linear [1, 8] to 8",
        name,
        lambda: torch.autograd.grad(functions[name](), leaves, grad),
    )
