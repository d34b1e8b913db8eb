"""Linear layers whose weights are masked from learned scores inside the product."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops._numbers import Number
from maskcl.ops.selection import Select, check_pair, selected
from maskcl.schemas import fake


def piggyback_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    threshold: Number = 5e-3,
    bias: Tensor | None = None,
    *,
    levels: str = "binary",
    inclusive: bool = False,
    density: float | None = None,
    scale: Number = 1.0,
) -> Tensor:
    """x (W m(scores))^T + b, with no masked weight in memory.

    Equivalent to ``F.linear(x, piggyback_weight(weight, scores, threshold), bias)`` (Piggyback,
    Mallya et al. 2018, section 3). Takes part in autocast (scores stay as they are).

    Args:
        x: [.., I], floating.
        weight: [O, I], x's dtype.
        scores: [O, I], float32, bfloat16 or weight's dtype.
        threshold: as for :func:`piggyback_weight`.
        bias: [O], x's dtype, or None.
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
    x, weight, bias = _check.linear_arguments(op, x, weight, bias)
    scores, select = selected(op, scores, threshold, levels, inclusive, density, scale)
    if x.dim() == 2:
        return masked_product(x, weight, scores, bias, select)
    y = masked_product(x.reshape(-1, x.shape[-1]), weight, scores, bias, select)
    return y.view(*x.shape[:-1], weight.shape[0])


def masked_product(
    x: Tensor, weight: Tensor, scores: Tensor, bias: Tensor | None, select: Select
) -> Tensor:
    """:func:`piggyback_linear` of x [N, I] where all is known to be right: nothing is checked."""
    return call(PiggybackLinearFunction, x, weight, scores, bias, *select)  # type: ignore[no-any-return]


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
