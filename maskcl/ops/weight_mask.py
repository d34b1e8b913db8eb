"""Masks of single weights from learned scores: alone, on a weight, inside a linear layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction
from maskcl.reference.gate import compute_dtype
from maskcl.reference.weight_mask import LEVELS
from maskcl.schemas import fake

# kth, levels, threshold, inclusive, scale: which mask a score gives, as the low-level ops take it
Select = tuple[Tensor | None, str, float, bool, float]


def binarize(scores: Tensor, threshold: float = 5e-3, *, inclusive: bool = False) -> Tensor:
    """1 where score > threshold, else 0; the gradient passes straight through.

    Equivalent to ``(scores > threshold).to(scores.dtype)`` (Piggyback, Mallya et al. 2018,
    section 3).

    Args:
        scores: any shape, floating.
        threshold: finite.
        inclusive: 1 at the threshold itself as well (BeGin's rule).

    Returns:
        Shape and dtype of ``scores``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    return _mask("binarize", scores, (None, "binary", threshold, inclusive, 1.0))


def ternarize(scores: Tensor, threshold: float = 5e-3, *, symmetric: bool = False) -> Tensor:
    """-1, 0 or 1 from scores; the gradient passes straight through.

    The original's rule: -1 where score < 0, 1 where score > threshold, else 0: a small negative
    score already turns a weight's sign. ``symmetric``: sign(score) where |score| > threshold, 0
    elsewhere.

    Args:
        scores: any shape, floating.
        threshold: finite, at least 0.
        symmetric: which rule.

    Returns:
        Shape and dtype of ``scores``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    levels = "ternary_symmetric" if symmetric else "ternary"
    return _mask("ternarize", scores, (None, levels, threshold, False, 1.0))


def topk_mask(scores: Tensor, density: float) -> Tensor:
    """1 for the share ``density`` of largest |score|, else 0; the gradient passes straight through.

    The rule of edge-popup (Ramanujan et al. 2020, section 3) and WSN (Kang et al. 2022). The bound
    is the exact k-th largest magnitude, k = round(density n), at least 1, for any n; all that equal
    it are 1.

    Args:
        scores: any shape, floating, not empty.
        density: in (0, 1].

    Returns:
        Shape and dtype of ``scores``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check.floating("topk_mask", "scores", scores)
    select = selection("topk_mask", scores, 0.0, "topk", density=density)
    return _mask("topk_mask", scores, select)


def soft_mask(scores: Tensor, threshold: float = 0.0, *, scale: float = 1.0) -> Tensor:
    """sigmoid(scale (score - threshold)), with its true gradient.

    Args:
        scores: any shape, floating.
        threshold: where the mask is 1/2, finite.
        scale: finite; the larger, the harder.

    Returns:
        Shape and dtype of ``scores``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    return _mask("soft_mask", scores, (None, "soft", threshold, False, scale))


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


def piggyback_weight(
    weight: Tensor,
    scores: Tensor,
    threshold: float = 5e-3,
    *,
    levels: str = "binary",
    inclusive: bool = False,
    density: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """W m(scores) in one pass forward and one backward.

    Equivalent to ``weight * binarize(scores, threshold)`` (Piggyback, Mallya et al. 2018, eq. 2),
    but a select: where m is 0 the result is 0 even for a weight that is not finite. Gradients:
    scores g W (straight-through; for "soft" times the sigmoid's slope), weight g m.

    Args:
        weight: any shape, floating.
        scores: weight's shape, floating; float32 whatever the weight's dtype is best.
        threshold: finite.
        levels: "binary", "ternary", "ternary_symmetric" (see :func:`ternarize`), "topk" (see
            :func:`topk_mask`) or "soft" (see :func:`soft_mask`).
        inclusive: of "binary", see :func:`binarize`.
        density: of "topk".
        scale: of "soft".

    Returns:
        Shape and dtype of ``weight``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "piggyback_weight"
    check_pair(op, weight, scores)
    select = selection(op, scores, threshold, levels, inclusive, density, scale)
    return PiggybackWeightFunction.apply(weight, scores, *select)


def piggyback_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: float = 5e-3,
    bias: Tensor | None = None,
    *,
    levels: str = "binary",
    inclusive: bool = False,
    density: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """x (W m(scores))^T + b, with no masked weight in memory.

    Equivalent to ``F.linear(x, piggyback_weight(weight, scores, threshold), bias)``. Takes part in
    autocast (scores stay as they are).

    Args:
        x: [.., I], floating.
        weight: [O, I], x's dtype.
        scores: [O, I], float32 or weight's dtype.
        threshold: as for :func:`piggyback_weight`.
        bias: [O] or None.
        levels: as for :func:`piggyback_weight`.
        inclusive: likewise.
        density: likewise.
        scale: likewise.

    Returns:
        [.., O] in x's dtype (the autocast dtype under autocast).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "piggyback_linear"
    check_pair(op, weight, scores)
    select = selection(op, scores, threshold, levels, inclusive, density, scale)
    x, weight, bias = linear_arguments(op, x, weight, bias)
    if x.dim() == 2:
        return PiggybackLinearFunction.apply(x, weight, scores, bias, *select)
    rows = x.reshape(-1, x.shape[-1])
    y = PiggybackLinearFunction.apply(rows, weight, scores, bias, *select)
    return y.view(*x.shape[:-1], weight.shape[0])


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


def linear_arguments(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight and bias in the autocast dtype where there is one, checked for a linear layer."""
    _check.floating(op, "x", x)
    _check.floating(op, "weight", weight)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: weight has shape {list(weight.shape)}, wanted [O, I] with I the last of x's"
            f" {list(x.shape)}"
        )
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"{op}: bias has shape {list(bias.shape)}, wanted [{weight.shape[0]}]")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        _check.same_device(op, name, tensor, "x", x)
        if tensor.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted x's dtype, {x.dtype}")
    return x, weight, bias


def _mask(op: str, scores: Tensor, select: Select) -> Tensor:
    _check.floating(op, "scores", scores)
    kth, levels, threshold, inclusive, scale = select
    if kth is None:
        select = selection(op, scores, threshold, levels, inclusive, None, scale)
    return WeightMaskFunction.apply(scores, *select)


class WeightMaskFunction(OpFunction):
    """m(scores); straight-through, or the sigmoid's slope for "soft"."""

    @staticmethod
    def forward(
        scores: Tensor,
        kth: Tensor | None,
        levels: str,
        threshold: float,
        inclusive: bool,
        scale: float,
    ) -> Tensor:
        run = backends.select("weight_mask", scores)
        return run(scores, kth, levels, threshold, inclusive, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scores, *ctx.select = inputs
        if ctx.select[1] == "soft":
            ctx.save_for_backward(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.saved_tensors:
            return grad, *(None,) * 5
        (scores,) = ctx.saved_tensors
        run = backends.select("masked_weight_backward", scores)
        return run(grad, None, scores, *ctx.select, False, True)[1], *(None,) * 5


class PiggybackWeightFunction(OpFunction):
    """W m(scores); keeps the weight, and the scores where something needs them."""

    @staticmethod
    def forward(
        weight: Tensor,
        scores: Tensor,
        kth: Tensor | None,
        levels: str,
        threshold: float,
        inclusive: bool,
        scale: float,
    ) -> Tensor:
        run = backends.select("masked_weight", weight)
        return run(weight, scores, kth, levels, threshold, inclusive, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        weight, scores, kth, *ctx.select = inputs
        ctx.save_for_backward(weight, scores, kth)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scores, kth = ctx.saved_tensors
        want_weight, want_scores = ctx.needs_input_grad[:2]
        dweight, dscores = backends.select("masked_weight_backward", weight)(
            grad, weight, scores, kth, *ctx.select, want_weight, want_scores
        )
        return (
            dweight if want_weight else None,
            dscores if want_scores else None,
            *(None,) * 5,
        )


class PiggybackLinearFunction(OpFunction):
    """x (W m)^T + b; keeps x, W and the scores, and selects anew in backward."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        scores: Tensor,
        bias: Tensor | None,
        kth: Tensor | None,
        levels: str,
        threshold: float,
        inclusive: bool,
        scale: float,
    ) -> Tensor:
        run = backends.select("piggyback_linear", x)
        return run(x, weight, scores, bias, kth, levels, threshold, inclusive, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, _, kth, *ctx.select = inputs
        ctx.save_for_backward(x, weight, scores, kth)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scores, kth = ctx.saved_tensors
        want_x, want_weight, want_scores, want_bias = ctx.needs_input_grad[:4]
        run = backends.select("piggyback_linear_backward", x)
        wanted = (want_x, want_weight, want_scores)
        dx, dweight, dscores = run(grad, x, weight, scores, kth, *ctx.select, *wanted)
        return (
            dx if want_x else None,
            dweight if want_weight else None,
            dscores if want_scores else None,
            grad.sum(0) if want_bias else None,
            *(None,) * 5,
        )


@fake("weight_mask")
def _(
    scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool, scale: float
) -> Tensor:
    return torch.empty_like(scores)


@fake("masked_weight")
def _(
    weight: Tensor,
    scores: Tensor,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
) -> Tensor:
    return torch.empty_like(weight)


@fake("masked_weight_backward")
def _(
    grad: Tensor,
    weight: Tensor | None,
    scores: Tensor,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
    want_weight: bool,
    want_scores: bool,
) -> tuple[Tensor, Tensor]:
    dweight = torch.empty_like(grad) if want_weight else grad.new_empty(0)
    return dweight, torch.empty_like(scores) if want_scores else scores.new_empty(0)


@fake("kth_largest")
def _(values: Tensor, k: int, magnitude: bool) -> Tensor:
    return values.new_empty((), dtype=compute_dtype(values.dtype))


@fake("piggyback_linear")
def _(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@fake("piggyback_linear_backward")
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
    want_x: bool,
    want_weight: bool,
    want_scores: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if want_x else (0,)),
        weight.new_empty(weight.shape if want_weight else (0,)),
        scores.new_empty(scores.shape if want_scores else (0,)),
    )
