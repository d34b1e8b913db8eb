"""Unit masks fused with the activation before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction
from maskcl.reference.gate import compute_dtype
from maskcl.reference.masked_forward import ACTIVATIONS, FROM_OUTPUT
from maskcl.schemas import fake

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
        save: what is kept for backward. "output": y alone, from which act(x + bias) is y / mask;
            where mask is exactly 0 its own gradient is then 0 (as through a closed gate). "input":
            x, for masks that must learn from exact zeros. "auto": y where the activation and dtype
            allow it (not gelu and silu, and not float16, whose range is too short for y / mask),
            else x.

    Returns:
        y, x's shape and dtype; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    check_arguments("masked_activation", x, mask, bias, activation, save)
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(
            f"masked_activation: channel_dim is {channel_dim}, wanted a dimension of x,"
            f" {list(x.shape)}"
        )
    channel_dim %= x.dim()
    check_channels("masked_activation", mask, bias, x.shape[channel_dim])
    keep_output = keeps_output(x.dtype, activation, save)
    return MaskedActivationFunction.apply(
        x, mask, bias, activation, negative_slope, channel_dim, keep_output
    )


def check_arguments(
    op: str, x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, save: str
) -> None:
    """Raise TypeError or ValueError unless they are what the masked ops take."""
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


def check_channels(op: str, mask: Tensor, bias: Tensor | None, channels: int) -> None:
    """Raise ValueError unless both have an element for each channel."""
    for name, vector in (("mask", mask), ("bias", bias)):
        if vector is not None and vector.numel() != channels:
            raise ValueError(
                f"{op}: {name} has {vector.numel()} elements, wanted {channels} channels"
            )


def keeps_output(dtype: torch.dtype, activation: str, save: str) -> bool:
    """Whether y is what backward needs, not what the activation was given."""
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
            in_dtype(dmask, mask.dtype) if want_mask else None,
            in_dtype(dbias, bias.dtype) if want_bias else None,
            *(None,) * 4,
        )


def in_dtype(grad: Tensor, dtype: torch.dtype) -> Tensor:
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
