"""Unit masks fused with the activation before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops._numbers import integer, number
from maskcl.reference import masked_forward as reference
from maskcl.reference.gate import compute_dtype
from maskcl.reference.masked_forward import ACTIVATIONS, FROM_OUTPUT
from maskcl.schemas import fake

SAVES = ("auto", "input", "output")
# Their slopes, 1 - a^2 and a (1 - a), cancel where a saturates: of half a float no digit is left.
_SATURATING = ("tanh", "sigmoid")
_HALVES = (torch.bfloat16, torch.float16)


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
        mask: [C], any floating dtype, >= 0; takes a gradient of its own dtype.
        bias: [C], any floating dtype, or None.
        activation: identity, relu, gelu, gelu_tanh, silu, tanh, sigmoid or leaky_relu.
        channel_dim: the dimension of C.
        negative_slope: of leaky_relu, finite. Below 0 the op is plain torch, whatever the backend.
        save: what is kept for backward. "output": y alone, from which act(x + bias) is y / mask;
            where mask is 0 its own gradient is then 0 (as through a closed gate), and below 1e-36,
            where y becomes subnormal, it fades to that. "input": x, for masks that must learn
            there. "auto": y where gradients can be had from it, else x: for gelu and silu, for tanh
            and sigmoid in bfloat16 and float16 (a rounded y says nothing of a saturated unit's
            slope) and for leaky_relu with a slope below 0 (y hides x's sign), where "output" is
            refused; and for all else in float16, whose range is too short for tiny masks.

    Returns:
        y, x's shape and dtype; computed in float32 at least.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "masked_activation"
    _check.floating(op, "x", x)
    check_vectors(op, x, mask, bias)
    slope = check_options(op, activation, negative_slope, save)
    channel_dim = integer(op, "channel_dim", channel_dim)
    if not -x.dim() <= channel_dim < x.dim():
        raise ValueError(
            f"{op}: channel_dim is {channel_dim}, wanted a dimension of x, {list(x.shape)}"
        )
    channel_dim %= x.dim()
    check_channels(op, mask, bias, x.shape[channel_dim])
    keep_output = keeps_output(op, x.dtype, activation, slope, save)
    return activate_and_mask(x, mask, bias, activation, slope, channel_dim, keep_output)


def activate_and_mask(
    x: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    channel_dim: int,
    keep_output: bool,
) -> Tensor:
    """masked_activation of checked arguments, with its gradients."""
    options = activation, slope, channel_dim
    if activation == "leaky_relu" and slope < 0:
        # The kernels take the slope from the activation's sign, which is x's only where both agree.
        return reference.masked_activation(x, mask, bias, *options)
    return call(MaskedActivationFunction, x, mask, bias, *options, keep_output)


def check_vectors(op: str, x: Tensor, mask: Tensor, bias: Tensor | None) -> None:
    """Raise TypeError or ValueError unless mask (and bias) are floating vectors on x's device."""
    _check.floating(op, "mask", mask)
    if mask.dim() != 1:
        _check.dimensions(op, "mask", mask, 1)
    if mask.device != x.device:
        _check.same_device(op, "mask", mask, "x", x)
    if bias is not None:
        _check.floating(op, "bias", bias)
        if bias.device != x.device:
            _check.same_device(op, "bias", bias, "x", x)


def check_options(op: str, activation: str, negative_slope: float, save: str) -> float:
    """The slope as a float, where all three are what the masked ops take.

    Raises:
        TypeError, ValueError: they are not.
    """
    if type(activation) is not str or activation not in ACTIVATIONS:
        _check.one_of(op, "activation", activation, ACTIVATIONS)
    if type(save) is not str or save not in SAVES:
        _check.one_of(op, "save", save, SAVES)
    return number(op, "negative_slope", negative_slope, torch.float32)


def check_channels(op: str, mask: Tensor, bias: Tensor | None, channels: int) -> None:
    """Raise ValueError unless both are vectors with an element for each channel."""
    if bias is None and mask.shape == (channels,):
        return
    for name, vector in (("mask", mask), ("bias", bias)):
        if vector is None or vector.shape == (channels,):
            continue
        if vector.dim() != 1:
            raise ValueError(f"{op}: {name} has shape {list(vector.shape)}, wanted [{channels}]")
        raise ValueError(f"{op}: {name} has {vector.numel()} elements, wanted {channels} channels")


def keeps_output(
    op: str, dtype: torch.dtype, activation: str, negative_slope: float, save: str
) -> bool:
    """Whether y is what backward needs, not what the activation was given.

    Raises:
        ValueError: y is asked for, and the gradients cannot be had from it.
    """
    if save == "input":
        return False
    reason = None
    if activation not in FROM_OUTPUT:
        reason = f"{activation} has no derivative from its output"
    elif activation in _SATURATING and dtype in _HALVES:
        reason = f"{activation}'s slope cannot be told from an output in {dtype}"
    elif activation == "leaky_relu" and negative_slope < 0:
        reason = f"negative_slope is {negative_slope}, and the output hides the input's sign"
    if save == "auto":
        return reason is None and dtype is not torch.float16
    if reason is not None:
        raise ValueError(f"{op}: save is 'output', but {reason}")
    return True


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
