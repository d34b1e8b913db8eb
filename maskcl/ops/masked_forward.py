"""Unit masks fused with the activation before them, alone or as the epilogue of a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction
from maskcl.ops._library import fake
from maskcl.ops.open_products import (
    check_window,
    linear,
    linear_backward,
    may_skip,
    open_conv,
)
from maskcl.reference.gate import compute_dtype
from maskcl.reference.masked_forward import ACTIVATIONS, FROM_OUTPUT

SAVES = ("auto", "input", "output")


def masked_activation(
    x: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    channel_dim: int = 1,
    negative_slope: float = 0.01,
    save: str = "auto",
) -> Tensor:
    """y = act(x + bias) * mask along ``channel_dim``, in one pass forward and one backward.

    Equivalent to ``act(x + bias.view(C, 1, ..)) * mask.view(C, 1, ..)`` (HAT's h' = a h, Serra et
    al. 2018, section 2.2).

    Args:
        x: [.., C, ..], floating; contiguous and channels_last are read in place, other strides
        copied.
        mask: [C], floating, >= 0.
        bias: [C] or None.
        activation: identity, relu, gelu, gelu_tanh, silu, tanh, sigmoid or leaky_relu.
        channel_dim: the dimension of C.
        negative_slope: of leaky_relu.
        save: what is kept for backward. "output": y alone, from which act(x) is y / mask; where
        mask
            is exactly 0 its own gradient is then 0 (as through a closed gate). "input": x, for
            masks that must learn from exact zeros. "auto": y where the activation and dtype allow
            it (not gelu and silu, and not float16, whose range is too short for y / mask), else x.

    Returns:
        y, x's shape and dtype; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check_arguments("masked_activation", x, mask, bias, activation, save)
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(
            f"masked_activation: channel_dim is {channel_dim}, wanted a dimension of x,"
            f" {list(x.shape)}"
        )
    channel_dim %= x.dim()
    _check_channels("masked_activation", mask, bias, x.shape[channel_dim])
    keep_output = _keeps_output(x.dtype, activation, save)
    return MaskedActivationFunction.apply(
        x, mask, bias, activation, negative_slope, channel_dim, keep_output
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
    _check_arguments("masked_linear", x, mask, bias, activation, save)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"masked_linear: weight has shape {list(weight.shape)}, wanted [O, I] with I"
            f" the last of x's {list(x.shape)}"
        )
    _check_channels("masked_linear", mask, bias, weight.shape[0])
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if _keeps_output(x.dtype, activation, save):
        return MaskedLinearFunction.apply(x, weight, mask, bias, activation, negative_slope)
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

    For images that :func:`open_conv` leaves closed channels out of, the mask is applied in place on
    the convolution's output; else it is :func:`masked_activation` behind it.

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
    _check_arguments("masked_conv", x, mask, bias, activation, save)
    _check.dimensions("masked_conv", "weight", weight, 4)
    _check_channels("masked_conv", mask, bias, weight.shape[0])
    if may_skip(x, weight, bias) and _keeps_output(x.dtype, activation, save):
        check_window("masked_conv", x, weight, stride, padding, dilation)
        options = [list(stride), list(padding), list(dilation)]
        return MaskedConvFunction.apply(x, weight, mask, bias, activation, negative_slope, *options)
    z = open_conv(x, weight, bias, stride, padding, dilation)
    keeps = _keeps_output(z.dtype, activation, save)
    return MaskedActivationFunction.apply(z, mask, None, activation, negative_slope, 1, keeps)


def _check_arguments(
    op: str, x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, save: str
) -> None:
    vectors = {"mask": mask} if bias is None else {"mask": mask, "bias": bias}
    for name, tensor in {"x": x, **vectors}.items():
        _check.floating(op, name, tensor)
        if tensor.device != x.device:
            _check.same_device(op, name, tensor, "x", x)
    _check.dimensions(op, "mask", mask, 1)
    _check.one_of(op, "activation", activation, ACTIVATIONS)
    _check.one_of(op, "save", save, SAVES)
    if save == "output" and activation not in FROM_OUTPUT:
        raise ValueError(
            f"{op}: save is 'output', but {activation} has no derivative from its output"
        )


def _check_channels(op: str, mask: Tensor, bias: Tensor | None, channels: int) -> None:
    for name, vector in (("mask", mask), ("bias", bias)):
        if vector is not None and vector.numel() != channels:
            raise ValueError(
                f"{op}: {name} has {vector.numel()} elements, wanted {channels} channels"
            )


def _keeps_output(dtype: torch.dtype, activation: str, save: str) -> bool:
    if save == "auto":
        return activation in FROM_OUTPUT and dtype != torch.float16
    return save == "output"


class MaskedActivationFunction(OpFunction):
    """masked_activation; keeps one tensor of x's size."""

    @staticmethod
    def forward(
        x: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        activation: str,
        slope: float,
        channel_dim: int,
        keep_output: bool,
    ) -> Tensor:
        run = backends.select("masked_activation", x)
        return run(x, mask, bias, activation, slope, channel_dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, mask, bias, ctx.activation, ctx.slope, ctx.channel_dim, ctx.keep_output = inputs
        ctx.save_for_backward(output if ctx.keep_output else x, mask, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved, mask, bias = ctx.saved_tensors
        want_x, want_mask, want_bias = ctx.needs_input_grad[:3]
        dz, dmask, dbias = backends.select("masked_activation_backward", saved)(
            grad,
            saved,
            mask,
            bias,
            ctx.activation,
            ctx.slope,
            ctx.channel_dim,
            ctx.keep_output,
            want_mask,
            want_bias,
        )
        return (
            dz if want_x else None,
            _as(dmask, mask.dtype) if want_mask else None,
            _as(dbias, bias.dtype) if want_bias else None,
            *(None,) * 4,
        )


class MaskedLinearFunction(OpFunction):
    """masked_linear where y alone need be kept: the mask is applied in place on the product."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float
    ) -> Tensor:
        # The product adds the bias, so that an ordinary Linear has the same bits.
        y = linear(x, weight, bias)
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
            _as(dmask, mask.dtype) if want_mask else None,
            _as(dbias, y.dtype) if want_bias else None,
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
            _as(dmask, mask.dtype) if want_mask else None,
            _as(dbias, y.dtype) if want_bias else None,
            *(None,) * 5,
        )


def _as(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum, which is float32 at least, in the dtype of the vector it is the gradient of."""
    return grad if grad.dtype == dtype else grad.to(dtype)


@fake("masked_activation")
def _(
    x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float, channel_dim: int
) -> Tensor:
    return torch.empty_like(x)


@fake("masked_activation_")
def _(
    x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float, channel_dim: int
) -> None:
    return None


@fake("masked_activation_backward")
def _(
    grad: Tensor,
    saved: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    channel_dim: int,
    from_output: bool,
    mask_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(saved.dtype)
    channels = saved.shape[channel_dim]
    dmask = mask.new_empty(channels if mask_grad else 0, dtype=dtype)
    dbias = mask.new_empty(channels if bias_grad else 0, dtype=dtype)
    return torch.empty_like(saved), dmask, dbias
