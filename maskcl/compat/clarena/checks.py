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


def check_task_id(owner: str, task_id: Any) -> None:
    """Raise ValueError unless it is an int of at least 1.

    Args:
        owner: who was given it.
        task_id: what was given.
    """
    if not isinstance(task_id, int) or isinstance(task_id, bool) or task_id < 1:
        raise ValueError(f"{owner}: task_id is {task_id!r}, wanted an int of at least 1")
