"""Unit masks as the epilogue of the product before them: linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops.masked_forward import (
    activate_and_mask,
    check_channels,
    check_options,
    check_vectors,
    in_dtype,
    keeps_output,
)
from maskcl.ops.masked_runs import MaskedLayerFunction
from maskcl.ops.open_products import (
    OpenConvFunction,
    conv_arguments,
    linear_backward,
    may_skip,
)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
    save: str = "auto",
) -> Tensor:
    """y = act(x W^T + bias) * mask, the mask an epilogue of the product, in place on its output.

    While the mask learns, closed columns of x are left out on a CPU; else the product is
    ``F.linear`` itself, to the bit. Gradients always leave out what is closed.

    Equivalent to ``act(F.linear(x, weight, bias)) * mask``. Takes part in autocast; gradients to x,
    weight, mask and bias.

    Args:
        x: [.., I], floating.
        weight: [O, I], x's dtype.
        mask: [O], any floating dtype, >= 0.
        bias: [O], x's dtype, or None.
        activation: as for :func:`masked_activation`.
        negative_slope: of leaky_relu.
        save: as for :func:`masked_activation`.

    Returns:
        [.., O] in x's dtype (the autocast dtype under autocast).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "masked_linear"
    if not _is_plain_layer(x, weight, mask, bias):
        x, weight, bias = _check.linear_arguments(op, x, weight, bias)
        check_vectors(op, x, mask, None)
        check_channels(op, mask, None, weight.shape[0])
    slope = check_options(op, activation, negative_slope, save)
    if keeps_output(op, x.dtype, activation, slope, save):
        function = MaskedLayerFunction if _learns(mask) else MaskedLinearFunction
        return call(function, x, weight, mask, bias, activation, slope)
    z = F.linear(x, weight, bias)
    return activate_and_mask(z, mask, None, activation, slope, z.dim() - 1, False)


def masked_conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *,
    activation: str = "identity",
    negative_slope: float = 0.01,
    save: str = "auto",
) -> Tensor:
    """y = act(conv2d(x) + bias) * mask along the channels.

    While the mask learns, images are convolved as by :func:`open_conv`, and where that leaves
    closed channels out, the mask is applied in place on its output; else the product is
    ``F.conv2d`` itself, to the bit.

    Equivalent to ``act(F.conv2d(x, weight, bias)) * mask.view(-1, 1, 1)``. Takes part in autocast;
    gradients to x, weight, mask and bias.

    Args:
        x: [N, I, H, W], or [I, H, W] for one image; floating.
        weight: [O, I, KH, KW], x's dtype.
        mask: [O], any floating dtype, >= 0.
        bias: [O], x's dtype, or None.
        stride: as for :func:`open_conv`.
        padding: as for :func:`open_conv`.
        dilation: as for :func:`open_conv`.
        activation: as for :func:`masked_activation`.
        negative_slope: of leaky_relu.
        save: as for :func:`masked_activation`.

    Returns:
        [N, O, OH, OW] (of one image [O, OH, OW]) in x's dtype (the autocast dtype under autocast).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "masked_conv"
    options = conv_arguments(op, x, weight, bias, stride, padding, dilation)
    check_vectors(op, x, mask, None)
    check_channels(op, mask, None, weight.shape[0])
    slope = check_options(op, activation, negative_slope, save)
    dtype = _check.in_autocast(x, _check.autocast_dtype(x))
    keeps = keeps_output(op, dtype, activation, slope, save)
    if not (_learns(mask) and may_skip(x, weight, bias)):
        z = F.conv2d(x, weight, bias, *options)
    elif keeps:
        return call(MaskedConvFunction, x, weight, mask, bias, activation, slope, *options)
    else:
        z = call(OpenConvFunction, x, weight, bias, *options)
    return activate_and_mask(z, mask, None, activation, slope, z.dim() - 3, keeps)


def _is_plain_layer(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None) -> bool:
    # What nearly every call is given: then the checks, dearer than a small layer, need not be made.
    if bias is None or not _check.are_alike(x, weight, mask, bias):
        return False
    try:
        units, inputs = weight.shape
        shapes = mask.shape == bias.shape == (units,) and x.shape[-1] == inputs
    except (RuntimeError, ValueError, IndexError):  # nested, not of two dimensions, of none
        return False
    return shapes and _check.autocast_dtype(x) is None


def _learns(mask: Tensor) -> bool:
    # Then it is soft, and no ordinary layer has that output. One that is fixed is a task's own: its
    # outputs are, to the bit, those of a plain network with the closed units' weights.
    return mask.requires_grad and torch.is_grad_enabled()


class MaskedLinearFunction(OpFunction):
    """masked_linear under a fixed mask: the ordinary product, the mask in place on it."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float
    ) -> Tensor:
        # The product adds the bias, so that an ordinary Linear has the same bits.
        y = F.linear(x, weight, bias)
        backends.select("masked_activation_", y)(y, mask, None, activation, slope, y.dim() - 1)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, mask, _, ctx.activation, ctx.slope = inputs
        ctx.save_for_backward(x, weight, mask, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask, y = ctx.saved_tensors
        want_x, want_weight, want_mask, want_bias = ctx.needs_input_grad[:4]
        run = backends.select("masked_activation_backward", y)
        activation, slope, last = ctx.activation, ctx.slope, y.dim() - 1
        dz, dmask, dbias = run(
            grad, y, mask, None, activation, slope, last, True, want_mask, want_bias
        )
        dx, dweight = linear_backward(dz, x, weight, want_x, want_weight)
        return (
            dx,
            dweight,
            in_dtype(dmask, mask.dtype) if want_mask else None,
            in_dtype(dbias, y.dtype) if want_bias else None,
            None,
            None,
        )


class MaskedConvFunction(OpFunction):
    """masked_conv where y alone need be kept: the mask is applied in place on the product."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        activation: str,
        slope: float,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> Tensor:
        y = backends.select("open_conv", x)(x, weight, bias, stride, padding, dilation)
        backends.select("masked_activation_", y)(y, mask, None, activation, slope, 1)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, mask, _, ctx.activation, ctx.slope, *ctx.options = inputs
        ctx.save_for_backward(x, weight, mask, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask, y = ctx.saved_tensors
        want_x, want_weight, want_mask, want_bias = ctx.needs_input_grad[:4]
        dz, dmask, dbias = backends.select("masked_activation_backward", y)(
            grad, y, mask, None, ctx.activation, ctx.slope, 1, True, want_mask, want_bias
        )
        dx, dweight, _ = backends.select("open_conv_backward", x)(
            dz, x, weight, *ctx.options, want_x, want_weight, False
        )
        return (
            dx if want_x else None,
            dweight if want_weight else None,
            in_dtype(dmask, mask.dtype) if want_mask else None,
            in_dtype(dbias, y.dtype) if want_bias else None,
            *(None,) * 5,
        )
