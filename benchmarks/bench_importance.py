"""The penalty and the importances of ResNet-18's 62 parameters, beside the peers' formulas.

One op a group: eager as BeGin writes it, the natural way compiled, a compiled function that writes
what ours writes, ours, and a copy of the same bytes.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import copy_of, device
from maskcl import ops

# Of the published architecture (He et al. 2016): stem, four stages of two blocks, output layer.
STAGES = [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]


def shapes():
    """Weights and norms of ResNet-18: 11,689,512 numbers in 62 tensors."""
    found = [(64, 3, 7, 7), (64,), (64,)]
    for before, width, stride in STAGES:
        for block in range(2):
            ins = before if block == 0 else width
            found += [(width, ins, 3, 3), (width,), (width,)]
            found += [(width, width, 3, 3), (width,), (width,)]
            if block == 0 and stride == 2:
                found += [(width, ins, 1, 1), (width,), (width,)]
    return [*found, (1000, 512), (1000,)]


def like(make):
    return [make(shape, device=device()) for shape in shapes()]


def natural(params, anchors, omegas):
    """The penalty as MAS's equation 3 writes it, differentiated by autograd."""
    pieces = zip(params, anchors, omegas, strict=True)
    return sum((omega * (p - anchor) ** 2).sum() for p, anchor, omega in pieces)


def direct(grads, params, anchors, omegas):
    """What ours writes, as torch's compiler would be told it."""
    value = 0.0
    for grad, p, anchor, omega in zip(grads, params, anchors, omegas, strict=True):
        pull = omega * (p - anchor)
        grad.add_(pull, alpha=2e-6)
        value = value + (pull * (p - anchor)).sum()
    return value


@pytest.mark.parametrize(
    "name",
    ["maskcl", "torch.compile, gradient written", "torch.compile", "BeGin's formula", "memcpy"],
)
def test_penalty(timed, name):
    params, anchors, grads, omegas = *(like(torch.randn) for _ in range(3)), like(torch.rand)
    leaves = [p.clone().requires_grad_() for p in params]
    written, compiled = torch.compile(direct), torch.compile(natural)
    floor = 5 * 4 * sum(p.numel() for p in params)
    runs = {
        "maskcl": lambda: ops.mas_penalty_grads_(grads, params, anchors, omegas, 1e-6),
        "torch.compile, gradient written": lambda: written(grads, params, anchors, omegas),
        "torch.compile": lambda: torch.autograd.grad(compiled(leaves, anchors, omegas), leaves),
        "BeGin's formula": lambda: torch.autograd.grad(natural(leaves, anchors, omegas), leaves),
        "memcpy": copy_of(floor),
    }
    timed("penalty and its gradient, ResNet-18, float32", name, runs[name], floor)


def begin(omegas, grads):
    """BeGin's way: a new importance for each parameter."""
    for t, grad in enumerate(grads):
        omegas[t] = omegas[t] + grad.abs() * 1e-6


def added(omegas, grads):
    for omega, grad in zip(omegas, grads, strict=True):
        omega.add_(grad.abs(), alpha=1e-6)


@pytest.mark.parametrize("name", ["maskcl", "torch.compile", "BeGin's formula", "memcpy"])
def test_accumulate(timed, name):
    grads, omegas = like(torch.randn), like(torch.rand)
    compiled = torch.compile(added)
    floor = 3 * 4 * sum(g.numel() for g in grads)
    runs = {
        "maskcl": lambda: ops.mas_accumulate_(omegas, grads, 1e-6),
        "torch.compile": lambda: compiled(omegas, grads),
        "BeGin's formula": lambda: begin(omegas, grads),
        "memcpy": copy_of(floor),
    }
    timed("mas_accumulate_, ResNet-18, float32", name, runs[name], floor)


def loop(x, grad):
    """One outer product a sample."""
    total = x.new_zeros(grad.shape[1], x.shape[1])
    for row, slope in zip(x, grad, strict=True):
        total += torch.outer(slope, row).abs()
    return total


@pytest.mark.parametrize("name", ["maskcl", "torch.compile", "eager", "one sample at a time"])
def test_linear(timed, name):
    x, grad = torch.randn(256, 2000, device=device()), torch.randn(256, 2000, device=device())
    compiled = torch.compile(lambda x, grad: grad.abs().t() @ x.abs())
    runs = {
        "maskcl": lambda: ops.linear_importance(x, grad),
        "torch.compile": lambda: compiled(x, grad),
        "eager": lambda: grad.abs().t() @ x.abs(),
        "one sample at a time": lambda: loop(x, grad),
    }
    timed("linear_importance, N 256, I = O = 2000, float32", name, runs[name])


@pytest.mark.parametrize("name", ["maskcl", "eager"])
def test_positions(timed, name):
    x, grad = torch.randn(64, 196, 576, device=device()), torch.randn(64, 196, 64, device=device())
    runs = {
        "maskcl": lambda: ops.linear_importance(x, grad),
        "eager": lambda: (grad.transpose(1, 2) @ x).abs().sum(0),
    }
    timed("linear_importance, N 64, P 196, I 576, O 64, float32", name, runs[name])
