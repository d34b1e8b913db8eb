"""Products behind masks, forward + backward, by the share of open units, beside torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.conftest import device
from maskcl import ops

NAMES = ["maskcl", "the dense product", "torch.compile of it"]
SHARES = [1.0, 0.6, 0.2]


def gates(units, share):
    """1 for ``share`` of the units, in no order."""
    return (torch.rand(units, device=device()) < share).float()


def timed_step(timed, group, name, functions, leaves, grad):
    functions["torch.compile of it"] = torch.compile(functions["the dense product"])
    run = functions[name]
    timed(group, name, lambda: torch.autograd.grad(run(), leaves, grad))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", SHARES)
def test_linear(timed, share, name):
    """masked_linear between masked units: N 64, I = O = 2000, as in the HAT paper's MLP."""
    x = (torch.randn(64, 2000, device=device()) * gates(2000, share)).requires_grad_()
    weight, bias = (torch.randn(*s, device=device()) for s in ((2000, 2000), (2000,)))
    leaves = [x, weight.requires_grad_(), bias.requires_grad_()]
    mask, grad = gates(2000, share), torch.randn(64, 2000, device=device())
    functions = {
        "maskcl": lambda: ops.masked_linear(x, weight, mask, bias),
        "the dense product": lambda: F.linear(x, weight, bias) * mask,
    }
    group = f"linear N 64, I = O = 2000, forward + backward, {share:.0%} of units open"
    timed_step(timed, group, name, functions, leaves, grad)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("share", SHARES)
def test_conv(timed, share, name):
    """A 3x3 convolution, channels_last: N 64, 64 to 128 channels, 14x14."""
    shape = (-1, 1, 1)
    x = torch.randn(64, 64, 14, 14, device=device()) * gates(64, share).view(shape)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(128, 64, 3, 3, device=device(), requires_grad=True)
    grad = torch.randn(64, 128, 12, 12, device=device()) * gates(128, share).view(shape)
    grad = grad.contiguous(memory_format=torch.channels_last)
    functions = {
        "maskcl": lambda: ops.open_conv(x, weight, None),
        "the dense product": lambda: F.conv2d(x, weight),
    }
    group = f"conv 3x3, 64x64x14x14 to 128, forward + backward, {share:.0%} of channels open"
    timed_step(timed, group, name, functions, [x, weight], grad)
