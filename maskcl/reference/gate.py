"""Unit gates of HAT in plain torch (Serra et al. 2018, sections 2.4 to 2.6).

"Overcoming catastrophic forgetting with hard attention to the task", arXiv 1801.01423.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64; every other dtype is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def sigmoid_slope(x: Tensor) -> Tensor:
    """sigmoid'(x), without the cancellation of m (1 - m) where m rounds to 1."""
    p = torch.sigmoid(-x.abs())
    return p * (1 - p)


def hat_gate(embedding: Tensor, scale: Tensor, floor: float = 0.0) -> Tensor:
    """m = sigmoid(scale e), eq. 1. embedding [U], scale [] -> mask [U], float32 (float64 kept).

    Masks below ``floor`` are exactly 0.
    """
    e = embedding.to(compute_dtype(embedding.dtype))
    mask = torch.sigmoid(scale.to(e.dtype) * e)
    return torch.where(mask < floor, 0.0, mask) if floor > 0 else mask


def hat_gate_backward(
    grad: Tensor,
    embedding: Tensor,
    mask: Tensor,
    scale: Tensor,
    max_scale: float,
    cosh_clamp: float,
    recipe: bool,
) -> Tensor:
    """Gradient of the gate [U], with the compensation of section 2.5 where max_scale > 0.

    The paper multiplies q = g s m (1 - m) by (s_max / s) (cosh(clip(s e, -k, k)) + 1) / (cosh(e) +
    1). With sigmoid'(x) = 1 / (2 (cosh x + 1)) that is g s_max sigmoid'(e) min(1, sigmoid'(s e) /
    sigmoid'(k)), in which nothing overflows. ``recipe`` keeps the rounding of the original instead,
    where m (1 - m) is 0 as soon as m rounds to 1; it takes the mask that the gate gives without its
    floor, and the others take none.
    """
    e = embedding.to(mask.dtype)
    g = grad.to(mask.dtype)
    s = scale.to(mask.dtype)
    x = s * e
    if recipe:
        out = g * s * (mask * (1 - mask))
        if max_scale > 0:
            out = out * (max_scale / s)
            out = out * ((torch.cosh(x.clamp(-cosh_clamp, cosh_clamp)) + 1) / (torch.cosh(e) + 1))
    elif max_scale > 0:
        beyond = x.abs().clamp_min(cosh_clamp)
        tail = (1 + math.exp(-cosh_clamp)) / (1 + torch.exp(-beyond))
        out = g * max_scale * sigmoid_slope(e) * (torch.exp(cosh_clamp - beyond) * (tail * tail))
    else:
        out = g * s * sigmoid_slope(x)
    return out.to(embedding.dtype)


def hat_gates(
    embedding: Tensor, scale: Tensor, share: Tensor, floor: float, weight: float
) -> tuple[Tensor, Tensor]:
    """The gates of a whole network and the sparsity term of its loss.

    embedding [U], scale [], share [U] ((1 - u) / sum (1 - u) of eq. 5, or 0 where no unit is free)
    -> mask [U] as `hat_gate`'s, term [] = weight * sum mask share.
    """
    mask = hat_gate(embedding, scale, floor)
    return mask, weight * (mask * share.to(mask.dtype)).sum()


def hat_gates_backward(
    grads: list[Tensor],
    grad_term: Tensor,
    embedding: Tensor,
    scale: Tensor,
    share: Tensor,
    sizes: list[int],
    weight: float,
    max_scale: float,
    cosh_clamp: float,
    recipe: bool,
) -> Tensor:
    """Gradient of both [U], in closed form.

    ``grads`` are the mask's, cut into parts of ``sizes`` one after the other; a part without
    elements, or ``grad_term`` without, has had no gradient.
    """
    dtype = compute_dtype(embedding.dtype)
    grad = torch.cat(
        [
            g.to(dtype) if g.numel() else share.new_zeros(size, dtype=dtype)
            for g, size in zip(grads, sizes, strict=True)
        ]
    )
    if grad_term.numel():
        grad = grad + weight * grad_term.to(dtype) * share.to(dtype)
    mask = hat_gate(embedding, scale)
    return hat_gate_backward(grad, embedding, mask, scale, max_scale, cosh_clamp, recipe)


def hat_sparsity(mask: Tensor, used: Tensor) -> Tensor:
    """Eq. 5: sum m (1 - u) / sum (1 - u). mask, used (bool, float) [U] -> []; 0 if none is free."""
    free = 1 - used.to(mask.dtype)
    count = free.sum()
    return torch.where(count > 0, (mask * free).sum() / count, torch.zeros_like(count))


def hat_sparsity_backward(grad: Tensor, mask: Tensor, used: Tensor) -> Tensor:
    """grad [] -> g (1 - u) / sum (1 - u) [U]; exactly 0 where no unit is free."""
    free = 1 - used.to(mask.dtype)
    count = free.sum()
    return torch.where(count > 0, grad.to(mask.dtype) * free / count, torch.zeros_like(free))
