"""Whether an op's result is its formula's: a wrong one is not worth a figure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskcl import backends, schemas
from maskcl.bench.case import Case
from maskcl.bench.cases import case

__all__ = ["difference", "drawn", "on_backend", "result", "wrong"]

_TOLERANCE = 1e-4  # of the largest number


def wrong(op: str, size: int, batch: int, device: str) -> str:
    """How the op's result differs from its formula's on the backend that is taken by itself.

    Returns:
        Words; empty where they agree.
    """
    ours, plain = (drawn(op, size, batch, device) for _ in range(2))
    return difference(result(ours.ours, ours), result(plain.plain, plain))


def drawn(op: str, size: int, batch: int, device: str) -> Case:
    """The same numbers every time."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        return case(op, size, batch)


def on_backend(op: str, name: str, device: str) -> Callable[[], Any]:
    """Run on this backend; one that would be taken anyway is not asked for, which costs time."""
    low = op if op in schemas.STEM_OF else "hat_gate"
    if name == "maskcl" or backends.choose(low, device, torch.float32) == name:
        return contextlib.nullcontext
    return lambda: backends.use_backend(name)


def result(run: Callable[[], Any], made: Case) -> list[Tensor]:
    """What a call gives and writes, detached."""
    found = run()
    given = [] if made.written else list(found) if isinstance(found, tuple) else [found]
    return [torch.as_tensor(value).detach().clone() for value in (*given, *made.written)]


def difference(found: list[Tensor], wanted: list[Tensor]) -> str:
    """How far results are apart, in words; empty where they agree."""
    for ours, plain in zip(found, wanted, strict=True):
        if ours.shape != plain.shape:
            return f"its shape is {list(ours.shape)} and not {list(plain.shape)}"
        if not plain.is_floating_point():
            if not torch.equal(ours.to(plain.dtype), plain):
                return "other bits"
            continue
        apart = (ours.double() - plain.double()).abs().max().item()
        if not apart <= _TOLERANCE * max(1e-30, plain.abs().max().item()):
            return f"{apart:.2g} apart"
    return ""
