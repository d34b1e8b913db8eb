"""Assertions, inputs and processes that tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

# Elementwise results in a dtype against float64: a few roundings of that dtype.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


def assert_close(found: Tensor, wanted: Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    """``found`` equals float64 ``wanted`` within a few roundings of ``dtype``, and holds no NaN."""
    tolerance = TOLERANCE[dtype] * scale
    torch.testing.assert_close(
        found.double().cpu(), wanted.double().cpu(), rtol=tolerance, atol=tolerance
    )


def assert_sum_close(
    found: Tensor, terms: Tensor, dims: Iterable[int], dtype: torch.dtype, scale: float = 1.0
) -> None:
    """``found`` is ``terms`` summed over ``dims``, to ``dtype``'s rounding of sum |terms|."""
    dims = list(dims)
    wanted, size = (terms.sum(dims), terms.abs().sum(dims)) if dims else (terms, terms.abs())
    error = (found.double().cpu() - wanted.cpu()).abs()
    bound = (
        scale * TOLERANCE[dtype] * (size.cpu() + 1)
    )  # an activation itself is right to 1 ulp of 1
    assert bool((error <= bound).all()), f"error {error.max()}, bound {bound[error.argmax()]}"


def variants(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory orders: a slice of more, transposed, channels_last."""
    padded = torch.full([s + 1 for s in x.shape], float("nan"), dtype=x.dtype, device=x.device)
    inside = padded[tuple(slice(0, s) for s in x.shape)]
    inside.copy_(x)
    found = {"contiguous": x, "slice": inside}
    if x.dim() >= 2:
        found["transposed"] = x.transpose(0, 1).contiguous().transpose(0, 1)
    if x.dim() == 4:
        found["channels_last"] = x.contiguous(memory_format=torch.channels_last)
    return found


def in_two_processes(process: Callable[[int, str], None], folder: Path) -> None:
    """``process(rank, folder)`` in two fresh processes; where one fails or hangs, neither stays."""
    context = torch.multiprocessing.get_context("spawn")
    children = [context.Process(target=process, args=(rank, str(folder))) for rank in range(2)]
    try:
        for child in children:
            child.start()
        for child in children:
            child.join(120)
            assert child.exitcode == 0
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
