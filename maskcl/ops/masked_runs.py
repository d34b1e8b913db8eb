"""Neighbouring linear layers under masks that learn, as one node of the graph.

In networks of a few hundred units modules and nodes cost as much as what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import is_
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops.masked_forward import in_dtype
from maskcl.reference.gate import compute_dtype
from maskcl.reference.masked_products import BIAS, MASK, WEIGHT
from maskcl.schemas import fake


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


class MaskedLayerFunction(OpFunction):
    """A single layer of :func:`masked_linears`, without what the lists of several cost.

    Arguments: x, weight, mask, bias or None, activation and slope.
    """

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float
    ) -> Tensor:
        biases = [x.new_empty(0) if bias is None else bias]
        run = backends.select("masked_linears", x)
        if x.dim() == 2:
            return run(x, [weight], biases, [mask], activation, slope)[0]  # type: ignore[no-any-return]
        rows = x.reshape(-1, x.shape[-1])
        (y,) = run(rows, [weight], biases, [mask], activation, slope)
        return y.view(*x.shape[:-1], y.shape[-1])  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, mask, _, *ctx.how = inputs
        ctx.save_for_backward(x, weight, mask, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mask, y = ctx.saved_tensors
        want_x, want_weight, want_mask, want_bias, *_ = ctx.needs_input_grad
        rows = x
        if x.dim() != 2:
            rows, grad, y = (t.reshape(-1, t.shape[-1]) for t in (x, grad, y))
        wanted = WEIGHT * want_weight + MASK * want_mask + BIAS * want_bias
        run = backends.select("masked_linears_backward", x)
        found = run(grad, rows, [y], [weight], [mask], *ctx.how, want_x, [wanted])
        dx, dweight, dbias, dmask = found
        return (
            dx.view(x.shape) if want_x else None,
            dweight if want_weight else None,
            in_dtype(dmask, mask.dtype) if want_mask else None,
            in_dtype(dbias, x.dtype) if want_bias else None,
            None,
            None,
        )


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
