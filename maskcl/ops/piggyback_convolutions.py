"""Convolutions whose weights are masked from learned scores, with no masked weight kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops.selection import Select


@dataclass(frozen=True)
class Window:
    """How a convolution goes over its input; each of ``stride`` to ``dilation`` by dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def arguments(self) -> tuple[Any, ...]:
        """For ``torch.convolution``, from stride to groups."""
        none = (0,) * len(self.stride)
        return self.stride, self.padding, self.dilation, False, none, self.groups


def piggyback_convolution(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None,
    select: Select,
    window: Window,
) -> Tensor:
    """conv(x, W m(scores)) + b: the masked weight is made anew in backward.

    Equivalent to the convolution with :func:`piggyback_weight`, to the bit, which keeps the masked
    weight from forward to backward. Takes part in autocast as convolutions do.

    Args:
        x: [N, C, *].
        weight: [O, C / groups, *].
        scores: weight's shape.
        bias: [O] or None; takes no gradient.
        select: as ``selection`` gives it.
        window: of the convolution.
    """
    wanted = _check.autocast_dtype(x)
    dtype = _check.in_autocast(weight, wanted)
    if wanted is not None:
        x = x.to(_check.in_autocast(x, wanted))
        bias = None if bias is None else bias.to(_check.in_autocast(bias, wanted))
    return call(PiggybackConvFunction, x, weight, scores, bias, window, dtype, *select)  # type: ignore[no-any-return]


class PiggybackConvFunction(OpFunction):
    """Keeps x, W and the scores, and selects anew in backward."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        scores: Tensor,
        bias: Tensor | None,
        window: Window,
        dtype: torch.dtype,
        *select: Any,
    ) -> Tensor:
        masked = backends.select("masked_weight", weight)(weight, scores, *select).to(dtype)
        return torch.convolution(x, masked, bias, *window.arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, scores, bias, ctx.window, ctx.dtype, kth, *ctx.select = inputs
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.save_for_backward(x, weight, scores, kth)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scores, kth = ctx.saved_tensors
        want_x, want_weight, want_scores = ctx.needs_input_grad[:3]
        select = kth, *ctx.select
        masked = backends.select("masked_weight", weight)(weight, scores, *select).to(ctx.dtype)
        wanted = [want_x, want_weight or want_scores, False]
        dx, dmasked, _ = torch.ops.aten.convolution_backward(
            grad, x, masked, ctx.bias_sizes, *ctx.window.arguments, wanted
        )
        dweight = dscores = None
        if wanted[1]:
            dmasked = dmasked.to(weight.dtype)
            del masked
            run = backends.select("masked_weight_backward", weight)
            dweight, dscores = run(dmasked, weight, scores, *select, want_weight, want_scores)
        return (
            dx if want_x else None,
            dweight if want_weight else None,
            dscores if want_scores else None,
            *(None,) * 8,
        )
