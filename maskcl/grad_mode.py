"""Gradients off for one call, at a small network's price."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def untracked(run: Callable[..., Result], *args: object) -> Result:
    """``run(*args)`` where autograd records nothing.

    What ``with torch.no_grad():`` does, which takes longer than a step's kernels in a network of a
    few hundred units: it makes an object and calls six functions of Python.
    """
    if not torch.is_grad_enabled():
        return run(*args)
    torch._C._set_grad_enabled(False)
    try:
        return run(*args)
    finally:
        torch._C._set_grad_enabled(True)
