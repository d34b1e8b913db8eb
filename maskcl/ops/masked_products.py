"""Unit masks as the epilogue of the product before them: linear layers and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import is_
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
from maskcl.ops.open_products import (
    OpenConvFunction,
    conv_arguments,
    linear,
    linear_backward,
    may_skip,
)
from maskcl.reference.gate import compute_dtype
from maskcl.reference.masked_products import BIAS, MASK, WEIGHT
from maskcl.schemas import fake


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
    x, weight, bias = _check.linear_arguments(op, x, weight, bias)
    check_vectors(op, x, mask, None)
    check_channels(op, mask, None, weight.shape[0])
    slope = check_options(op, activation, negative_slope, save)
    if keeps_output(op, x.dtype, activation, slope, save):
        if _learns(mask):
            return masked_linears(x, [weight], [bias], [mask], activation, slope)
        return call(MaskedLinearFunction, x, weight, mask, bias, activation, slope)
    z = F.linear(x, weight, bias)
    return activate_and_mask(z, mask, None, activation, slope, z.dim() - 1, False)


def masked_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    masks: Sequence[Tensor],
    activation: str,
    slope: float,
) -> Tensor:
    """:func:`masked_linear` of each layer in turn while the masks learn, in one call each way.

    For modules, which have checked what goes in: nothing is checked here.

    Args:
        x: [.., I].
        weights: of the layers, [O, I].
        biases: of the layers, [O] or None.
        masks: of the layers, [O]; one less than there are layers where the last is an ordinary
            one, without activation too.
        activation: of all layers, one whose slope its output tells.
        slope: of leaky_relu, at least 0.

    Returns:
        The last layer's output, [.., O].
    """
    layers = (*weights, *biases, *masks)
    y = call(MaskedLinearsFunction, x, activation, slope, len(weights), *layers)
    return y if isinstance(y, Tensor) else y[-1]


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


def _learns(mask: Tensor) -> bool:
    # Then it is soft, and no ordinary layer has that output. One that is fixed is a task's own: its
    # outputs are, to the bit, those of a plain network with the closed units' weights.
    return mask.requires_grad and torch.is_grad_enabled()


class MaskedLinearsFunction(OpFunction):
    """A run of masked linear layers that keeps x and each layer's output.

    Arguments: x, activation, slope, the number of layers, then all weights, biases and masks, of
    which there may be one less.
    """

    @staticmethod
    def forward(
        x: Tensor, activation: str, slope: float, count: int, *layers: Tensor | None
    ) -> tuple[Tensor, ...]:
        biases = without_none(layers[count : 2 * count], x)
        run = backends.select("masked_linears", x)
        if x.dim() == 2:
            return tuple(run(x, layers[:count], biases, layers[2 * count :], activation, slope))
        rows = x.reshape(-1, x.shape[-1])
        *inner, y = run(rows, layers[:count], biases, layers[2 * count :], activation, slope)
        return *inner, y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def result(output: tuple[Tensor, ...]) -> Tensor:
        return output[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.activation, ctx.slope, count, *layers = inputs
        ctx.count = count
        masks = layers[2 * count :]
        ctx.masks = len(masks)
        # An ordinary last layer's gradients are not made of its output, which may be written to.
        kept = output[:-1] if ctx.masks < count else output
        ctx.save_for_backward(x, *layers[:count], *masks, *kept)
        if count > 1:
            ctx.mark_non_differentiable(*output[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = ctx.count
        x, *saved = ctx.saved_tensors
        behind = count + ctx.masks
        weights, masks, ys = saved[:count], saved[count:behind], saved[behind:]
        want_x, _, _, _, *want = ctx.needs_input_grad
        rows, grad = x, grads[-1]
        if x.dim() != 2:
            rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        ys = outputs_for(grad, ys, count)
        run = backends.select("masked_linears_backward", x)
        how = ctx.activation, ctx.slope, want_x, bits_of_wanted(want, count)
        dx, *found = run(grad, rows, ys, weights, masks, *how)
        found_masks = [
            in_dtype(g, mask.dtype) if is_wanted else None
            for g, is_wanted, mask in zip(found[2::3], want[2 * count :], masks, strict=False)
        ]
        dlayers = as_wanted([*found[::3], *found[1::3]], want, x.dtype)
        return dx.view(x.shape) if want_x else None, None, None, None, *dlayers, *found_masks


def without_none(biases: tuple[Tensor | None, ...], like: Tensor) -> Sequence[Tensor]:
    """Biases as the kernels take them: none has no elements."""
    if any(map(is_, biases, repeat(None))):
        none = like.new_empty(0)
        return [none if bias is None else bias for bias in biases]
    return biases  # type: ignore[return-value]


def outputs_for(grad: Tensor, kept: list[Tensor], count: int) -> list[Tensor]:
    """Every layer's output, [N, O], as the kernels take them; ``grad`` is the last one's, [N, O].

    One that was not kept stands for nothing: any of its shape and dtype will do.
    """
    if len(kept) < count:
        return [*kept, grad]
    return kept if kept[-1].dim() == 2 else [*kept[:-1], kept[-1].reshape(grad.shape)]


def bits_of_wanted(want: Sequence[bool], count: int) -> list[int]:
    """What the kernels are asked for of each layer; ``want``: of all weights, biases and masks."""
    if all(want):
        masks = len(want) - 2 * count
        return [WEIGHT + BIAS + MASK] * masks + [WEIGHT + BIAS] * (count - masks)
    weights, biases, masked = want[:count], want[count : 2 * count], (*want[2 * count :], False)
    return [
        WEIGHT * weight + BIAS * bias + MASK * mask
        for weight, bias, mask in zip(weights, biases, masked, strict=False)
    ]


def as_wanted(grads: list[Tensor], want: Sequence[bool], dtype: torch.dtype) -> list[Tensor | None]:
    """Of weights and biases, in their dtype; None for what is not wanted."""
    if dtype is torch.float32 and all(want):
        return [*grads]
    return [
        in_dtype(g, dtype) if is_wanted else None for g, is_wanted in zip(grads, want, strict=False)
    ]


class MaskedLinearFunction(OpFunction):
    """masked_linear under a fixed mask: the ordinary product, the mask in place on it."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float
    ) -> Tensor:
        # The product adds the bias, so that an ordinary Linear has the same bits.
        y = linear(x, weight, bias, True)
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


@fake("masked_linears")
def _(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    masks: list[Tensor],
    activation: str,
    slope: float,
) -> list[Tensor]:
    return [x.new_empty(x.shape[0], weight.shape[0]) for weight in weights]


@fake("masked_linears_backward")
def _(
    grad: Tensor,
    x: Tensor,
    ys: list[Tensor],
    weights: list[Tensor],
    masks: list[Tensor],
    activation: str,
    slope: float,
    want_x: bool,
    wanted: list[int],
) -> list[Tensor]:
    sums = compute_dtype(x.dtype)
    found = [x.new_empty(x.shape if want_x else (0, 0))]
    for weight, want in zip(weights, wanted, strict=True):
        units = weight.shape[0]
        found += [
            weight.new_empty(weight.shape if want & WEIGHT else (0, 0)),
            x.new_empty(units if want & BIAS else 0, dtype=sums),
            x.new_empty(units if want & MASK else 0, dtype=sums),
        ]
    return found
