"""hat_gate forward and backward, with the compensation, for all units of a network."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import copy_of, device
from maskcl import ops

UNITS = 4000


def gate(embedding, scale):
    return torch.sigmoid(scale * embedding)


def compensate(q, e, scale):
    numerator = torch.cosh((scale * e).clamp(-50, 50)) + 1
    return q * (400.0 / scale * numerator / (torch.cosh(e) + 1))


def original(embedding, scale, grad, gate=gate, compensate=compensate):
    """The original recipe: autograd's gradient, then the cosh quotient (HAT, section 2.5)."""
    mask = gate(embedding, scale)
    (q,) = torch.autograd.grad(mask, embedding, grad)
    return mask, compensate(q, embedding.detach(), scale)


def ours(embedding, scale, grad):
    mask = ops.hat_gate(embedding, scale, max_scale=400.0)
    return mask, torch.autograd.grad(mask, embedding, grad)[0]


@pytest.mark.parametrize(
    "name", ["maskcl", "eager recipe", "torch.compile of the recipe", "memcpy"]
)
def test_gate(timed, name):
    e = torch.randn(UNITS, device=device(), requires_grad=True)
    s, g = torch.tensor(20.0, device=device()), torch.randn(UNITS, device=device())
    floor = 5 * UNITS * 4
    # In two parts: torch.compile would trace a function that calls autograd anew at every call.
    compiled = torch.compile(gate), torch.compile(compensate)
    runs = {
        "maskcl": lambda: ours(e, s, g),
        "eager recipe": lambda: original(e, s, g),
        "torch.compile of the recipe": lambda: original(e, s, g, *compiled),
        "memcpy": copy_of(floor),
    }
    timed(f"hat_gate forward + backward, {UNITS} units", name, runs[name], floor)
