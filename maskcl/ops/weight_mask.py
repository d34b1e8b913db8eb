"""Masks of single weights from learned scores: alone, and on a weight.

A threshold (a scale) is a finite number or a 0-d tensor, which takes no gradient. Eager code reads
the tensor, and waits for it; compiled code does not, and another value compiles nothing anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops._numbers import Number
from maskcl.ops.selection import check_pair, selected
from maskcl.schemas import fake


def binarize(scores: Tensor, threshold: Number = 5e-3, *, inclusive: bool = False) -> Tensor:
    """1 where score > threshold, else 0; the gradient passes straight through.

    Equivalent to ``(scores > threshold).to(scores.dtype)`` (Mallya et al. 2018, section 3).

    Args:
        scores: any shape, floating.
        threshold: finite.
        inclusive: 1 at the threshold itself as well (BeGin's rule).

    Returns:
        Shape and dtype of ``scores``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    return _mask("binarize", scores, threshold, "binary", inclusive)


def ternarize(scores: Tensor, threshold: Number = 5e-3, *, symmetric: bool = False) -> Tensor:
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
    return _mask("ternarize", scores, threshold, levels)


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
    return _mask("topk_mask", scores, 0.0, "topk", density=density)


def soft_mask(scores: Tensor, threshold: Number = 0.0, *, scale: Number = 1.0) -> Tensor:
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
    return _mask("soft_mask", scores, threshold, "soft", scale=scale)


def _mask(
    op: str,
    scores: Tensor,
    threshold: Number,
    levels: str,
    inclusive: bool = False,
    density: float | None = None,
    scale: Number = 1.0,
) -> Tensor:
    _check.floating(op, "scores", scores)
    dtype = scores.dtype
    scores, select = selected(op, scores, threshold, levels, inclusive, density, scale)
    mask = call(WeightMaskFunction, scores, *select)
    return mask if mask.dtype is dtype else mask.to(dtype)


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


def piggyback_weight(
    weight: Tensor,
    scores: Tensor,
    threshold: Number = 5e-3,
    *,
    levels: str = "binary",
    inclusive: bool = False,
    density: float | None = None,
    scale: Number = 1.0,
) -> Tensor:
    """W m(scores) in one pass forward and one backward.

    Equivalent to ``weight * binarize(scores, threshold)`` (Piggyback, Mallya et al. 2018, eq. 2),
    but a select: where m is 0 the result is 0 even for a weight that is not finite. Gradients:
    scores g W (straight-through; for "soft" times the sigmoid's slope), weight g m.

    Args:
        weight: any shape, floating.
        scores: weight's shape, floating; float32 whatever the weight's dtype is best.
        threshold: finite.
        levels: "binary", "ternary" or "ternary_symmetric" (:func:`ternarize`), "topk" or "soft".
        inclusive: of "binary", see :func:`binarize`.
        density: of "topk", see :func:`topk_mask`.
        scale: of "soft", see :func:`soft_mask`.

    Returns:
        Shape and dtype of ``weight``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "piggyback_weight"
    check_pair(op, weight, scores)
    scores, select = selected(op, scores, threshold, levels, inclusive, density, scale)
    return call(PiggybackWeightFunction, weight, scores, *select)


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
        return dweight if want_weight else None, dscores if want_scores else None, *(None,) * 5


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
