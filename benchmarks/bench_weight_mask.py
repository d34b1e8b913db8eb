"""piggyback_weight forward + backward beside eager, torch.compile and the original's formula."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import copy_of, device
from maskcl import ops

THRESHOLD = 5e-3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class StraightThrough(torch.autograd.Function):
    """A careful eager threshold: one comparison and one conversion."""

    @staticmethod
    def forward(scores):
        return (scores > THRESHOLD).to(scores.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad


class OriginalThreshold(StraightThrough):
    """The original's threshold: a copy, then two writes through comparisons."""

    @staticmethod
    def forward(scores):
        out = scores.clone()
        out[scores.le(THRESHOLD)] = 0
        out[scores.gt(THRESHOLD)] = 1
        return out


def formulas(weight, scores):
    """Name -> the masked weight."""

    def eager():
        return weight * StraightThrough.apply(scores).to(weight.dtype)

    return {
        "maskcl": lambda: ops.piggyback_weight(weight, scores, THRESHOLD),
        "eager": eager,
        "torch.compile": torch.compile(eager),
        "original's formula": lambda: weight * OriginalThreshold.apply(scores).to(weight.dtype),
    }


NAMES = ["maskcl", "eager", "torch.compile", "original's formula", "memcpy"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4096, 4096), (512, 512, 3, 3)], ids=str)
def test_piggyback_weight(timed, shape, dtype, name):
    if len(shape) == 4 and dtype != "float32":
        pytest.skip("one shape is enough for the second dtype")
    weight = torch.randn(shape, device=device(), dtype=DTYPES[dtype])
    scores = torch.randn(shape, device=device()).mul(0.01).requires_grad_()
    grad = torch.randn_like(weight)
    size = weight.numel()
    # Forward: W and s in, W m out; backward: g and W in, the scores' gradient out.
    floor = size * (4 * weight.element_size() + 2 * scores.element_size())
    group = f"piggyback_weight forward + backward, {list(shape)}, {dtype}, float32 scores"
    forward = formulas(weight, scores).get(name)

    def step():
        torch.autograd.grad(forward(), scores, grad)

    timed(group, name, copy_of(floor) if name == "memcpy" else step, floor)


@pytest.mark.parametrize("name", ["maskcl", "torch.kthvalue", "torch.topk", "torch.sort"])
def test_kth_largest(timed, name):
    values = torch.randn(2048, 2048, device=device())
    k = values.numel() // 2
    flat = values.flatten()
    functions = {
        "maskcl": lambda: ops.kth_largest(values, k, magnitude=True),
        "torch.kthvalue": lambda: flat.abs().kthvalue(flat.numel() - k + 1),
        "torch.topk": lambda: flat.abs().topk(k, sorted=False).values.min(),
        "torch.sort": lambda: flat.abs().sort().values[-k],
    }
    group = "kth_largest of |x|, 2048x2048, float32, k half of them"
    timed(group, name, functions[name], 4 * values.numel())
