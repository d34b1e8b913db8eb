"""hat_gate forward and backward, with the compensation, for all units of a network."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import copy_of, device
from maskcl import ops

UNITS = 4000


def original(embedding, scale, grad):
    """The original recipe: autograd's gradient, then the cosh quotient (HAT, section 2.5)."""
    mask = torch.sigmoid(scale * embedding)
    (q,) = torch.autograd.grad(mask, embedding, grad)
    e = embedding.detach()
    numerator = torch.cosh((scale * e).clamp(-50, 50)) + 1
    return mask, q * (400.0 / scale * numerator / (torch.cosh(e) + 1))


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
    compiled = torch.compile(original)
    runs = {
        "maskcl": lambda: ours(e, s, g),
        "eager recipe": lambda: original(e, s, g),
        "torch.compile of the recipe": lambda: compiled(e, s, g),
        "memcpy": copy_of(floor),
    }
    timed(f"hat_gate forward + backward, {UNITS} units", name, runs[name], floor)
