"""Runs of masked linear layers: products with the mask in their epilogue, small ones the library's.

Shapes as in :mod:`maskcl.reference.masked_products`.
"""

import torch.nn.functional as F
from torch import Tensor

from maskcl.reference.masked_products import BIAS, MASK, WEIGHT, ordinary_backward
from maskcl.triton._linear import masked_linear
from maskcl.triton.gate import hat_gates, hat_gates_backward
from maskcl.triton.masked_forward import masked_activation_, masked_activation_backward
from maskcl.triton.open_products import open_linear_backward


def masked_linears(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    masks: list[Tensor],
    activation: str,
    slope: float,
) -> list[Tensor]:
    """Every layer's output."""
    ys: list[Tensor] = []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        before, added = ys[-1] if ys else x, bias if bias.numel() else None
        mask = masks[layer] if layer < len(masks) else None
        y = None
        if mask is not None:
            y = masked_linear(before, weight, added, mask, activation, slope)
        if y is None:
            y = F.linear(before, weight, added)
            if mask is not None:
                masked_activation_(y, mask, None, activation, slope, 1)
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
    """dx, then dweight, dbias and dmask of every layer; what is not wanted has no elements."""
    found: list[Tensor] = []
    for layer in reversed(range(len(weights))):
        want = wanted[layer]
        if layer == len(masks):
            dz, dmask, dbias = ordinary_backward(grad, want)
        else:
            how = activation, slope, 1, True, bool(want & MASK), bool(want & BIAS)
            dz, dmask, dbias = masked_activation_backward(grad, ys[layer], masks[layer], None, *how)
        before = ys[layer - 1] if layer else x
        wants = bool(layer) or want_x, bool(want & WEIGHT)
        grad, dweight = open_linear_backward(dz, before, weights[layer], *wants)
        found = [dweight, dbias, dmask, *found]
    return [grad, *found]


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
