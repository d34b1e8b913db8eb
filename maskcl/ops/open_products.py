"""Products that leave closed units out, for layers behind masked ones.

On a CPU most of a HAT step is products with units whose gates are 0. The C++ backend looks which
columns are exactly 0 (:mod:`maskcl.reference.open_products`) and neither copies nor multiplies
them. On a GPU to look would be to wait for it: there the library's own product is traced as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops._numbers import integer
from maskcl.reference.open_products import open_linear_backward, order_of
from maskcl.schemas import fake


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dx like x, dweight [O, I]) of ``F.linear``; None where not asked for."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    g = grad if grad.dim() == 2 else grad.reshape(-1, grad.shape[-1])
    cpu = x.device.type == "cpu"
    run = backends.select("open_linear_backward", x) if cpu else open_linear_backward
    dx, dweight = run(g, rows, weight, want_x, want_weight)
    return dx.view(x.shape) if want_x else None, dweight if want_weight else None


def open_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Tensor:
    """conv2d(x) + bias without the closed channels of x; gradients without those of dy as well.

    ``F.conv2d`` within rounding. Channels are left out on a CPU, of float32 images, contiguous or
    in channels_last, where a fifth or more are closed (a third in channels_last). All else is
    ``F.conv2d``, autocast too.

    Args:
        x: [N, I, H, W], or [I, H, W] for one image; floating.
        weight: [O, I, KH, KW], x's dtype.
        bias: [O], x's dtype, or None.
        stride: of both dimensions.
        padding: zeros around x, of both dimensions.
        dilation: of both dimensions.

    Returns:
        [N, O, OH, OW] (of one image [O, OH, OW]) in x's dtype (the autocast dtype under autocast),
        channels_last where x is.

    Raises:
        TypeError, ValueError: an argument is not as above, or images are smaller than the window.
    """
    options = conv_arguments("open_conv", x, weight, bias, stride, padding, dilation)
    if may_skip(x, weight, bias):
        return call(OpenConvFunction, x, weight, bias, *options)
    return F.conv2d(x, weight, bias, *options)


def may_skip(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether closed channels of such a convolution may be left out."""
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    dtypes = {t.dtype for t in (x, weight, bias) if t is not None}
    if dtypes != {torch.float32} or weight.dim() != 4 or x.dim() != 4:
        return False
    if not x.is_contiguous():
        return x.is_contiguous(memory_format=torch.channels_last)
    # The compiler lays such images out as it likes, transforms have rules for conv2d, and weights
    # in channels_last have it give such images.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return weight.is_contiguous()


def conv_arguments(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[list[int], list[int], list[int]]:
    """stride, padding and dilation of both dimensions, all checked for a convolution of images.

    Raises:
        TypeError: a tensor is none, or has another dtype than x; an option is not made of ints.
        ValueError: shapes, devices or options do not fit each other.
    """
    _check.floating(op, "x", x)
    _check.floating(op, "weight", weight)
    _check.dimensions(op, "weight", weight, 4)
    found = list(weight.shape)
    if x.dim() not in (3, 4):
        raise ValueError(
            f"{op}: x has shape {list(x.shape)}, wanted [N, I, H, W], or [I, H, W] for one image"
        )
    if found[1] != x.shape[-3]:
        raise ValueError(f"{op}: weight has shape {found}, wanted [O, {x.shape[-3]}, KH, KW]")
    if bias is not None:
        _check.floating(op, "bias", bias)
        if bias.shape != (found[0],):
            raise ValueError(f"{op}: bias has shape {list(bias.shape)}, wanted [{found[0]}]")
    _check_kinds(op, x, weight, bias)
    options = (
        _pair(op, "stride", stride, 1),
        _pair(op, "padding", padding, 0),
        _pair(op, "dilation", dilation, 1),
    )
    for size, kernel, pad, step in zip(x.shape[-2:], found[2:], *options[1:], strict=True):
        if size + 2 * pad < step * (kernel - 1) + 1:
            raise ValueError(
                f"{op}: x has shape {list(x.shape)}, smaller than the window of {found[2:]}"
            )
    return options


def _check_kinds(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless all are on one device and, after autocast, of one dtype."""
    dtype = _check.autocast_dtype(x)
    if dtype is None:
        _check.one_kind(op, x, weight, bias)
        return
    kept = _check.in_autocast(x, dtype)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        _check.same_device(op, name, tensor, "x", x)
        if _check.in_autocast(tensor, dtype) is not kept:
            raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted x's dtype, {x.dtype}")


def _pair(op: str, name: str, value: Sequence[int] | int, least: int) -> list[int]:
    """Of an option as ``F.conv2d`` takes it, one number or two, the two."""
    pair = value if isinstance(value, Sequence) else (value, value)
    wanted = f"wanted two numbers, {least} or more"
    if isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"{op}: {name} is {value!r}, {wanted}")
    found = [integer(op, name, size) for size in pair]
    if min(found) < least:
        raise ValueError(f"{op}: {name} is {value}, {wanted}")
    return found


class OpenConvFunction(OpFunction):
    """open_conv; keeps x."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> Tensor:
        return backends.select("open_conv", x)(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, *ctx.options = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        run = backends.select("open_conv_backward", x)
        grads = run(grad, x, weight, *ctx.options, *wanted)
        found = (g if want else None for g, want in zip(grads, wanted, strict=True))
        return (*found, None, None, None)


@fake("open_linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, ordinary: bool = False) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@fake("open_linear_backward")
def _(
    grad: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape if want_x else (0, 0))
    return dx, weight.new_empty(weight.shape if want_weight else (0, 0))


@fake("open_conv")
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    sizes = [
        (x.shape[2 + d] + 2 * padding[d] - dilation[d] * (weight.shape[2 + d] - 1) - 1) // stride[d]
        + 1
        for d in range(2)
    ]
    y = x.new_empty(x.shape[0], weight.shape[0], *sizes)
    return y.contiguous(memory_format=order_of(x))


@fake("open_conv_backward")
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=order_of(x)) if want_x else x.new_empty(0)
    dweight = torch.empty_like(weight) if want_weight else weight.new_empty(0)
    return dx, dweight, weight.new_empty(weight.shape[0] if want_bias else 0)
