"""Gradients off for one call, at a small network's price.

``torch.no_grad()`` makes an object and calls six functions of Python, which takes longer than the
kernels of a step in a network of a few hundred units.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def untracked(
    function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """``function(*args, **kwargs)`` where autograd records nothing."""
    if not torch.is_grad_enabled():
        return function(*args, **kwargs)
    torch._C._set_grad_enabled(False)
    try:
        return function(*args, **kwargs)
    finally:
        torch._C._set_grad_enabled(True)


def without_gradients(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Have autograd record nothing of a function's calls: ``@torch.no_grad()``."""

    @functools.wraps(function)
    def wrapped(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return untracked(function, *args, **kwargs)

    return wrapped
