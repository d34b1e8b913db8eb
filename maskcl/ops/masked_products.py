"""Unit masks as the epilogue of the product before them: linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction
from maskcl.ops.masked_forward import (
    MaskedActivationFunction,
    check_arguments,
    check_channels,
    in_dtype,
    keeps_output,
)
from maskcl.ops.open_products import (
    check_window,
    linear,
    linear_backward,
    may_skip,
    open_conv,
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

    While the mask learns, closed columns of x are left out on a CPU; else the product has the bits
    of ``F.linear``. Gradients always leave out what is closed.

    Equivalent to ``act(F.linear(x, weight, bias)) * mask``. Takes part in autocast.

    Args:
        x: [.., I], floating.
        weight: [O, I].
        mask: [O], floating, >= 0.
        bias: [O] or None.
        activation: as for :func:`masked_activation`.
        negative_slope: of leaky_relu.
        save: as for :func:`masked_activation`.

    Returns:
        [.., O] in x's dtype (the autocast dtype under autocast).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    check_arguments("masked_linear", x, mask, bias, activation, save)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"masked_linear: weight has shape {list(weight.shape)}, wanted [O, I] with I"
            f" the last of x's {list(x.shape)}"
        )
    check_channels("masked_linear", mask, bias, weight.shape[0])
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if keeps_output(x.dtype, activation, save):
        return MaskedLinearFunction.apply(
            x, weight, mask, bias, activation, negative_slope, not _learns(mask)
        )
    z = F.linear(x, weight, bias)
    return MaskedActivationFunction.apply(
        z, mask, None, activation, negative_slope, z.dim() - 1, False
    )


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
    closed channels out, the mask is applied in place on its output; else the product has the bits
    of ``F.conv2d``.

    Args:
        x: [N, I, H, W], floating.
        weight: [O, I, KH, KW].
        mask: [O], floating, >= 0.
        bias: [O] or None.
        stride: as for :func:`open_conv`.
        padding: as for :func:`open_conv`.
        dilation: as for :func:`open_conv`.
        activation: as for :func:`masked_activation`.
        negative_slope: of leaky_relu.
        save: as for :func:`masked_activation`.

    Returns:
        [N, O, OH, OW] in x's dtype (the autocast dtype under autocast).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    check_arguments("masked_conv", x, mask, bias, activation, save)
    _check.dimensions("masked_conv", "weight", weight, 4)
    check_channels("masked_conv", mask, bias, weight.shape[0])
    skips = _learns(mask) and may_skip(x, weight, bias)
    if skips and keeps_output(x.dtype, activation, save):
        check_window("masked_conv", x, weight, stride, padding, dilation)
        options = [list(stride), list(padding), list(dilation)]
        return MaskedConvFunction.apply(x, weight, mask, bias, activation, negative_slope, *options)
    convolve = open_conv if skips else F.conv2d
    z = convolve(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation))
    keeps = keeps_output(z.dtype, activation, save)
    return MaskedActivationFunction.apply(z, mask, None, activation, negative_slope, 1, keeps)


def _learns(mask: Tensor) -> bool:
    # Then it is soft, and no ordinary layer has that output. One that is fixed is a task's own: its
    # outputs are, to the bit, those of a plain network with the closed units' weights.
    return mask.requires_grad and torch.is_grad_enabled()


class MaskedLinearFunction(OpFunction):
    """masked_linear where y alone need be kept: the mask is applied in place on the product."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        activation: str,
        slope: float,
        ordinary: bool,
    ) -> Tensor:
        # The product adds the bias, so that an ordinary Linear has the same bits.
        y = linear(x, weight, bias, ordinary)
        backends.select("masked_activation_", y)(y, mask, None, activation, slope, y.dim() - 1)
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, mask, _, ctx.activation, ctx.slope, _ = inputs
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
            *(None,) * 3,
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
