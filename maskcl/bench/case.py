"""An op's call and the same in careful eager torch.

Careful: dense masks of protected weights and masks that hold for a task are made before, and what
torch has fused is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["OPEN", "USED", "Case", "bytes_of", "differentiated", "units"]

OPEN, USED = 0.6, 0.3  # shares of a mask's units, and of those that an earlier task uses


class Case(NamedTuple):
    """An op's call and plain torch's.

    Attributes:
        ours: the call.
        plain: careful eager torch.
        wrt: by what the result is differentiated.
        written: what both write, where they work in place.
        moved: the least bytes that the call must read and write; 0 where it is about no memory.
        moved_back: the same with the backward.
        formula: what torch.compile is given, where that is not ``plain``.
    """

    ours: Callable[[], Any]
    plain: Callable[[], Any]
    wrt: tuple[Tensor, ...] = ()
    written: tuple[Tensor, ...] = ()
    moved: int = 0
    moved_back: int = 0
    formula: Callable[[], Any] | None = None


def differentiated(function: Callable[[], Tensor], wrt: tuple[Tensor, ...]) -> Callable[[], Any]:
    """The same call, recorded and gone back through; calls that share these tensors change too."""
    for tensor in wrt:
        tensor.requires_grad_()
    grad = torch.ones_like(function())
    return lambda: torch.autograd.grad(function(), wrt, grad)


def bytes_of(*numbers: int) -> int:
    """Of so many numbers in float32."""
    return 4 * sum(numbers)


def units(size: int, share: float) -> Tensor:
    """Bool [size], about this share of them, the first one always."""
    return (torch.rand(size) < share).index_fill(0, torch.tensor([0]), True)
