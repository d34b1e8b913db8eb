"""Runs of linear layers that each end in an activation and a mask (HAT, Serra et al. 2018, 2.2).

y_l = act(y_{l-1} W_l^T + b_l) m_l for l = 0, 1, ..; y_{-1} is x. A backend may leave out of the
products what closes a layer: units whose mask is exactly 0 (see
:mod:`maskcl.reference.open_products`; here they are known by their mask and not by their values, so
that a NaN in such a unit's own output meets nothing behind it).
"""

from __future__ import annotations

from torch import Tensor

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
    for weight, bias, mask in zip(weights, biases, masks, strict=True):
        before = ys[-1] if ys else x
        z = open_linear(before, weight, bias if bias.numel() else None)
        ys.append(masked_activation(z, mask, None, activation, slope, 1))
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
        dz, dmask, dbias = masked_activation_backward(
            grad,
            ys[layer],
            masks[layer],
            None,
            activation,
            slope,
            1,
            True,
            bool(want & MASK),
            bool(want & BIAS),
        )
        before = ys[layer - 1] if layer else x
        grad, dweight = open_linear_backward(
            dz, before, weights[layer], bool(layer) or want_x, bool(want & WEIGHT)
        )
        found = [dweight, dbias, dmask, *found]
    return [grad, *found]
