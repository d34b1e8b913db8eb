"""masked_activation and masked_linear, forward + backward, beside eager and torch.compile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.conftest import copy_of, device
from maskcl import ops

NAMES = ["maskcl", "eager", "torch.compile", "memcpy"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def eager(x, mask, activation):
    shape = [1, -1] + [1] * (x.dim() - 2)
    return getattr(F, activation)(x) * mask.to(x.dtype).view(shape)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("shape", [(8192, 2048), (64, 256, 32, 32)], ids=str)
def test_masked_activation(timed, shape, activation, dtype, name):
    if (activation == "gelu" or dtype != "float32") and len(shape) == 4:
        pytest.skip("one layout is enough for the second activation and dtype")
    x = torch.randn(shape, device=device(), dtype=DTYPES[dtype], requires_grad=True)
    mask = torch.rand(shape[1], device=device(), requires_grad=True)
    grad = torch.randn_like(x)
    forward = {
        "maskcl": lambda: ops.masked_activation(x, mask, activation=activation),
        "eager": lambda: eager(x, mask, activation),
    }
    compiled = torch.compile(lambda: eager(x, mask, activation))
    forward["torch.compile"] = compiled

    def step():
        torch.autograd.grad(forward[name](), (x, mask), grad)

    floor = 5 * x.numel() * x.element_size()
    group = f"masked_activation {activation} forward + backward, {list(shape)}, {dtype}"
    timed(group, name, copy_of(floor) if name == "memcpy" else step, floor)


@pytest.mark.parametrize("name", ["maskcl", "F.linear + relu, no mask", "eager", "torch.compile"])
@pytest.mark.parametrize("shape", [(64, 2000, 2000), (2048, 2048, 2048)], ids=str)
def test_masked_linear(timed, shape, name):
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs, device=device(), requires_grad=True)
    weight = torch.randn(outputs, inputs, device=device(), requires_grad=True)
    bias = torch.randn(outputs, device=device(), requires_grad=True)
    mask = torch.rand(outputs, device=device(), requires_grad=True)
    grad = torch.randn(rows, outputs, device=device())

    def written():
        return F.relu(F.linear(x, weight, bias)) * mask

    forward = {
        "maskcl": lambda: ops.masked_linear(x, weight, mask, bias, activation="relu"),
        "F.linear + relu, no mask": lambda: F.relu(F.linear(x, weight, bias)),
        "eager": written,
        "torch.compile": torch.compile(written),
    }[name]
    leaves = (x, weight, bias) if "no mask" in name else (x, weight, bias, mask)
    group = f"masked_linear relu forward + backward, N {rows}, I {inputs}, O {outputs}, float32"
    timed(group, name, lambda: torch.autograd.grad(forward(), leaves, grad))
