"""Which mask scores give: the arguments of the weight masks, checked, as the kernels take them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.reference.gate import compute_dtype
from maskcl.reference.weight_mask import LEVELS
from maskcl.schemas import fake

Select = tuple[Tensor | None, str, float, bool, float]
"""kth, levels, threshold, inclusive and scale: ``schemas.SELECT``."""


def selection(
    op: str,
    scores: Tensor,
    threshold: float,
    levels: str,
    inclusive: bool = False,
    density: float | None = None,
    scale: float = 1.0,
) -> Select:
    """Checked arguments as the low-level ops take them; the k-th value for "topk".

    Raises:
        TypeError, ValueError: an argument is not as :func:`piggyback_weight` wants it.
    """
    _check.one_of(op, "levels", levels, LEVELS)
    for name, number in (("threshold", threshold), ("scale", scale)):
        if not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(f"{op}: {name} is {number!r}, wanted a finite number")
    if levels.startswith("ternary") and threshold < 0:
        raise ValueError(f"{op}: threshold is {threshold}, wanted at least 0 for {levels!r}")
    if inclusive and levels != "binary":
        raise ValueError(f"{op}: inclusive belongs to levels 'binary', found {levels!r}")
    if levels != "topk":
        if density is not None:
            raise ValueError(f"{op}: density is {density!r}, wanted None for levels {levels!r}")
        return None, levels, float(threshold), bool(inclusive), float(scale)
    if not isinstance(density, (int, float)) or not 0 < density <= 1:
        raise ValueError(f"{op}: density is {density!r}, wanted a number in (0, 1] for 'topk'")
    if scores.numel() == 0:
        raise ValueError(
            f"{op}: scores has shape {list(scores.shape)}, wanted at least one for 'topk'"
        )
    k = max(1, round(density * scores.numel()))
    return kth_largest(scores, k, magnitude=True), levels, 0.0, False, 1.0


def check_pair(op: str, weight: Tensor, scores: Tensor) -> None:
    """Raise unless weight and scores are floating, of one shape, on one device."""
    _check.floating(op, "weight", weight)
    _check.floating(op, "scores", scores)
    _check.same_shape(op, "scores", scores, "weight", weight)
    _check.same_device(op, "scores", scores, "weight", weight)
    if scores.dtype not in (torch.float32, weight.dtype):
        raise TypeError(
            f"{op}: scores is {scores.dtype}, wanted torch.float32 or weight's {weight.dtype}"
        )


def kth_largest(values: Tensor, k: int, *, magnitude: bool = False) -> Tensor:
    """The exact k-th largest of any number of values.

    Equivalent to ``values.flatten().sort(descending=True).values[k - 1]``. Has no gradient.

    Args:
        values: any shape, floating, not empty. NaN counts as the largest.
        k: from 1 to the number of values.
        magnitude: look at |values|.

    Returns:
        0-d float32 (float64 for float64) on the same device.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check.floating("kth_largest", "values", values)
    if not isinstance(k, int) or not 1 <= k <= values.numel():
        raise ValueError(f"kth_largest: k is {k!r}, wanted an int from 1 to {values.numel()}")
    with torch.no_grad():
        return backends.select("kth_largest", values)(values, k, magnitude)


@fake("kth_largest")
def _(values: Tensor, k: int, magnitude: bool) -> Tensor:
    return values.new_empty((), dtype=compute_dtype(values.dtype))
