"""Which mask scores give: the arguments of the weight masks, checked, as the kernels take them."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl import backends
from maskcl.grad_mode import untracked
from maskcl.ops import _check
from maskcl.ops._numbers import Number, changes, in_graph, integer, number
from maskcl.reference.gate import compute_dtype
from maskcl.reference.weight_mask import LEVELS
from maskcl.schemas import fake

Select = tuple[Tensor | None, str, float, bool, float]
"""kth, levels, threshold, inclusive and scale: ``schemas.SELECT``."""


def selection(
    op: str,
    scores: Tensor,
    threshold: Number,
    levels: str,
    inclusive: bool = False,
    density: float | None = None,
    scale: Number = 1.0,
) -> Select:
    """Checked arguments as the low-level ops take them; the k-th value for "topk".

    Raises:
        TypeError, ValueError: an argument is not as :func:`piggyback_weight` wants it.
    """
    _check.one_of(op, "levels", levels, LEVELS)
    found = number(op, "threshold", threshold)
    found_scale = number(op, "scale", scale, compute_dtype(scores.dtype))
    if found < 0 and levels.startswith("ternary"):
        raise ValueError(f"{op}: threshold is {threshold}, wanted at least 0 for {levels!r}")
    if inclusive and levels != "binary":
        raise ValueError(f"{op}: inclusive belongs to levels 'binary', found {levels!r}")
    if levels != "topk":
        if density is not None:
            raise ValueError(f"{op}: density is {density!r}, wanted None for levels {levels!r}")
        return None, levels, found, bool(inclusive), found_scale
    kept = _kept(op, density, scores)
    return kth_largest(scores, kept, magnitude=True), levels, 0.0, False, 1.0


def _kept(op: str, density: float | None, scores: Tensor) -> int:
    """How many scores the share ``density`` is."""
    share = 0.0 if density is None else number(op, "density", density)
    if not 0 < share <= 1:
        raise ValueError(f"{op}: density is {density!r}, wanted a number in (0, 1] for 'topk'")
    if scores.numel() == 0:
        raise ValueError(
            f"{op}: scores has shape {list(scores.shape)}, wanted at least one for 'topk'"
        )
    return max(1, round(share * scores.numel()))


def selected(
    op: str,
    scores: Tensor,
    threshold: Number,
    levels: str,
    inclusive: bool = False,
    density: float | None = None,
    scale: Number = 1.0,
) -> tuple[Tensor, Select]:
    """scores, and :func:`selection` of them.

    A graph holds the numbers that an op is given as constants. One that changes between calls, or
    a tensor, is put into the scores there: those that come back, float32 at least, have the same
    mask at threshold 0 and scale 1, and pass gradients on.
    """
    if torch.compiler.is_compiling():
        _check.one_of(op, "levels", levels, LEVELS)
        scores, threshold, scale = _folded(op, scores, threshold, levels, scale)
    return scores, selection(op, scores, threshold, levels, inclusive, density, scale)


def _folded(
    op: str, scores: Tensor, threshold: Number, levels: str, scale: Number
) -> tuple[Tensor, Number, Number]:
    """The same without what changes; as they are where nothing does."""
    new_threshold, new_scale = changes(threshold), changes(scale)
    if not (new_threshold or new_scale) or levels == "topk":  # topk looks at neither
        return scores, 0.0 if new_threshold else threshold, 1.0 if new_scale else scale
    s = scores.to(compute_dtype(scores.dtype))
    if new_threshold:
        if not isinstance(threshold, Tensor):
            selection(op, scores, threshold, levels)  # for its checks
        # Compared in the scores' dtype, as in threshold_for; a sigmoid's is taken as it is.
        dtype = s.dtype if levels == "soft" else scores.dtype
        t = in_graph(op, "threshold", threshold, dtype, s.device).to(s.dtype)
        s, threshold = s - _nearest_zero(s.detach(), t, levels), 0.0
    if new_scale and levels == "soft":
        s, threshold = (s - threshold) * in_graph(op, "scale", scale, s.dtype, s.device), 0.0
    return s, threshold, 1.0 if new_scale else scale


def _nearest_zero(s: Tensor, t: Tensor, levels: str) -> Tensor:
    """What to take off scores so that 0 parts them as the threshold did; all of it in between."""
    if levels == "ternary":
        return torch.minimum(s.clamp(min=0), t)
    if levels == "ternary_symmetric":
        return torch.minimum(torch.maximum(s, -t), t)
    return t


def check_pair(op: str, weight: Tensor, scores: Tensor) -> None:
    """Raise unless weight and scores are floating, of one shape, on one device."""
    _check.floating(op, "weight", weight)
    _check.floating(op, "scores", scores)
    _check.same_shape(op, "scores", scores, "weight", weight)
    _check.same_device(op, "scores", scores, "weight", weight)
    if scores.dtype not in (torch.float32, torch.bfloat16, weight.dtype):
        raise TypeError(
            f"{op}: scores is {scores.dtype}, wanted torch.float32, torch.bfloat16 or weight's"
            f" {weight.dtype}"
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
    if values.numel() == 0:
        raise ValueError(f"kth_largest: values has shape {list(values.shape)}, wanted at least one")
    k = integer("kth_largest", "k", k, 1, values.numel())
    run = backends.select("kth_largest", values)
    return untracked(run, values, k, bool(magnitude))


@fake("kth_largest")
def _(values: Tensor, k: int, magnitude: bool) -> Tensor:
    return values.new_empty((), dtype=compute_dtype(values.dtype))
