"""Runs of linear layers that each end in an activation and a mask (HAT, Serra et al. 2018, 2.2).

y_l = act(y_{l-1} W_l^T + b_l) m_l for l = 0, 1, ..; y_{-1} is x. Where there is a mask less than
there are weights, the last layer is an ordinary one, y_{l-1} W_l^T + b_l: a network's head.

A backend may leave out of the products what closes a layer: units whose mask is exactly 0 (see
:mod:`maskcl.reference.open_products`; here they are known by their mask and not by their values, so
that a NaN in such a unit's own output meets nothing behind it).
"""

from __future__ import annotations

from torch import Tensor

from maskcl.reference.gate import compute_dtype, hat_gates, hat_gates_backward
from maskcl.reference.masked_forward import masked_activation, masked_activation_backward
from maskcl.reference.open_products import open_linear, open_linear_backward

WEIGHT, BIAS, MASK = 1, 2, 4  # bits of what is wanted of a layer


def masked_linears(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    masks: list[Tensor],
    activation: str,
    slope: float,
) -> list[Tensor]:
    """Every layer's output: x [N, I], weights [O, I], biases [O] or [0] for none, masks [O]."""
    ys: list[Tensor] = []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        before = ys[-1] if ys else x
        y = open_linear(before, weight, bias if bias.numel() else None)
        if layer < len(masks):
            y = masked_activation(y, masks[layer], None, activation, slope, 1)
        ys.append(y)
    return ys


def masked_linears_backward(
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
    """dx [N, I], then dweight [O, I], dbias [O] and dmask [O] of every layer.

    ``wanted``: of each layer, the sum of WEIGHT, BIAS and MASK; what is not wanted has no elements.
    dbias and dmask are float32 at least. The activation's slope is taken from the outputs.
    """
    found: list[Tensor] = []
    for layer in reversed(range(len(weights))):
        want = wanted[layer]
        if layer == len(masks):
            dz, dmask, dbias = ordinary_backward(grad, want)
        else:
            sums = bool(want & MASK), bool(want & BIAS)
            dz, dmask, dbias = masked_activation_backward(
                grad, ys[layer], masks[layer], None, activation, slope, 1, True, *sums
            )
        before = ys[layer - 1] if layer else x
        grad, dweight = open_linear_backward(
            dz, before, weights[layer], bool(layer) or want_x, bool(want & WEIGHT)
        )
        found = [dweight, dbias, dmask, *found]
    return [grad, *found]


def ordinary_backward(grad: Tensor, want: int) -> tuple[Tensor, Tensor, Tensor]:
    """dz, dmask and dbias of a layer without a mask."""
    dtype = compute_dtype(grad.dtype)
    none = grad.new_empty(0, dtype=dtype)
    return grad, none, grad.sum(0, dtype=dtype) if want & BIAS else none


def gated_linears(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    embedding: Tensor,
    scale: Tensor,
    share: Tensor,
    sizes: list[int],
    weight: float,
    floor: float,
    activation: str,
    slope: float,
) -> list[Tensor]:
    """`hat_gates`' mask [U] and term [], and every output of `masked_linears` under that mask.

    The mask is cut into parts of ``sizes``, one a masked layer.
    """
    mask, term = hat_gates(embedding, scale, share, floor, weight)
    masks = list(mask.split(sizes))
    return [mask, term, *masked_linears(x, weights, biases, masks, activation, slope)]


def gated_linears_backward(
    grad: Tensor,
    grad_term: Tensor,
    x: Tensor,
    ys: list[Tensor],
    weights: list[Tensor],
    mask: Tensor,
    embedding: Tensor,
    scale: Tensor,
    share: Tensor,
    sizes: list[int],
    weight: float,
    max_scale: float,
    cosh_clamp: float,
    recipe: bool,
    activation: str,
    slope: float,
    want_x: bool,
    wanted: list[int],
) -> list[Tensor]:
    """dembedding [U], dx, then dweight and dbias of every layer.

    ``grad_term`` without elements: none. MASK is wanted of every masked layer.
    """
    masks = list(mask.split(sizes))
    dx, *found = masked_linears_backward(
        grad, x, ys, weights, masks, activation, slope, want_x, wanted
    )
    parts = found[2 : 3 * len(masks) : 3]
    how = max_scale, cosh_clamp, recipe
    dembedding = hat_gates_backward(parts, grad_term, embedding, scale, share, sizes, weight, *how)
    dlayers = [t for layer in range(len(weights)) for t in found[3 * layer : 3 * layer + 2]]
    return [dembedding, dx, *dlayers]
