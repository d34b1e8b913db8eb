"""clamp_grads_ with hard and soft masks at 30 % of the units used, beside the peers' formulas."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import copy_of, device
from maskcl import ops

SHAPES = [(2048, 2048), (512, 512, 3, 3)]
USED = 0.3


def sides(a, b, grad):
    ones = [1] * (grad.dim() - 2)
    return a.view(-1, 1, *ones), b.view(1, -1, *ones)


def dense(grad, out, ins):
    """The formula as the paper writes it: grad times 1 - min of the cumulative masks."""
    a, b = sides(out, ins, grad)
    return grad.mul_(1 - torch.minimum(a, b))


def clarena(grad, out, ins):
    """CLArena's way: both sides expanded to the weight, their minimum, a new gradient."""
    a, b = (side.expand_as(grad) for side in sides(out, ins, grad))
    return grad * (1 - torch.min(a, b))


def hat_cl(grad, out, ins):
    """hat-cl's way: a dense coefficient of two boolean masks, read on the host; a product."""
    a, b = (side.expand_as(grad) for side in sides(out, ins, grad))
    exhausted = bool(ins.all())
    coefficient = 1.0 - torch.logical_and(a, b).float()
    exhausted |= bool((coefficient == 0).all())
    return grad * coefficient


@pytest.mark.parametrize(
    "name",
    [
        "maskcl",
        "torch.compile",
        "eager",
        "precomputed mask",
        "CLArena's formula",
        "hat-cl's hook",
        "memcpy",
    ],
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_hard(timed, shape, name):
    grad = torch.randn(shape, device=device())
    out, ins = (torch.rand(n, device=device()) < USED for n in shape[:2])
    bits = out.long(), ins.long()
    floats = out.float(), ins.float()
    mask = 1 - torch.minimum(*(s.expand(shape) for s in sides(*floats, grad)))
    compiled = torch.compile(dense)
    runs = {
        "maskcl": lambda: ops.clamp_grads_([grad], [bits[0]], [bits[1]]),
        "torch.compile": lambda: compiled(grad, *floats),
        "eager": lambda: dense(grad, *floats),
        "precomputed mask": lambda: grad.mul_(mask),
        "CLArena's formula": lambda: clarena(grad, *floats),
        "hat-cl's hook": lambda: hat_cl(grad, out, ins),
    }
    floor = int(mask.numel() - mask.sum().item()) * 4
    run = copy_of(2 * grad.numel() * 4) if name == "memcpy" else runs[name]
    timed(f"clamp_grads_ hard, 30 % used, {list(shape)}, float32", name, run, floor)


@pytest.mark.parametrize("name", ["maskcl", "torch.compile", "eager", "memcpy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_soft(timed, shape, name):
    grad = torch.randn(shape, device=device())
    # Factors next to 1: a gradient scaled at every call must not decay to subnormals.
    out, ins = (1e-7 * torch.rand(n, device=device()) for n in shape[:2])
    compiled = torch.compile(dense)
    floor = 2 * grad.numel() * 4
    runs = {
        "maskcl": lambda: ops.clamp_grads_soft_([grad], [out], [ins]),
        "torch.compile": lambda: compiled(grad, out, ins),
        "eager": lambda: dense(grad, out, ins),
        "memcpy": copy_of(floor),
    }
    timed(f"clamp_grads_soft_ min, {list(shape)}, float32", name, runs[name], floor)
