"""Runs of masked linear layers: the library's products, each with the mask in place behind it.

Shapes as in :mod:`maskcl.reference.masked_products`.
"""

import torch.nn.functional as F
from torch import Tensor

from maskcl.reference.masked_products import BIAS, MASK, WEIGHT
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
    for weight, bias, mask in zip(weights, biases, masks, strict=True):
        y = F.linear(ys[-1] if ys else x, weight, bias if bias.numel() else None)
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
        sums = bool(want & MASK), bool(want & BIAS)
        dz, dmask, dbias = masked_activation_backward(
            grad, ys[layer], masks[layer], None, activation, slope, 1, True, *sums
        )
        before = ys[layer - 1] if layer else x
        wants = bool(layer) or want_x, bool(want & WEIGHT)
        grad, dweight = open_linear_backward(dz, before, weights[layer], *wants)
        found = [dweight, dbias, dmask, *found]
    return [grad, *found]
