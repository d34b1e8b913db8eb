"""How a task's embedding starts."""

from __future__ import annotations

import torch
from torch import Tensor

CLOSED = -6.0
"""Embedding of a unit that a task cannot use: it was finished when the unit came."""
INITS = ("normal", "uniform", "dense")


def new_embedding(
    units: int, init: str = "normal", generator: torch.Generator | None = None
) -> Tensor:
    """A task's embedding before training, float32 [units]; ``init`` as for HATNetwork."""
    if init == "normal":
        return torch.randn(units, generator=generator)
    if init == "uniform":
        return 2 * torch.rand(units, generator=generator)
    return torch.ones(units)


def check_init(init: str) -> None:
    """Raise ValueError unless embeddings can start so."""
    if init not in INITS:
        raise ValueError(f"HATNetwork: init is {init!r}, wanted one of {', '.join(INITS)}")
