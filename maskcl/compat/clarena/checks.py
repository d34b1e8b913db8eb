"""Checks that several classes make of their arguments."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor


def check_number(name: str, value: Any, least: float, *, above: bool = False) -> None:
    """Raise where an argument is not a finite number in its range.

    Args:
        name: whose argument, and which.
        value: what was given.
        least: the smallest number that will do.
        above: whether it has to be larger than that.

    Raises:
        ValueError: it is None, a text, not finite or too small.
    """
    fits = isinstance(value, (Real, Tensor)) and math.isfinite(float(value))
    if not fits or not (value > least if above else value >= least):
        wanted = "above" if above else "of at least"
        raise ValueError(f"{name} is {value!r}, wanted a finite number {wanted} {least}")
