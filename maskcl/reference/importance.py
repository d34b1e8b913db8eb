"""Importances of parameters and the quadratic penalty that they weigh, in plain torch.

MAS (Aljundi et al. 2018, "Memory aware synapses", eq. 2 to 4): Omega is the mean over samples of
|dF/dW|, F the squared norm of the network's output. EWC (Kirkpatrick et al. 2017, eq. 3): the mean
of (d log p/dW)^2. Both charge sum Omega (W - W*)^2 for leaving the anchor W*.

Importances are float32 (float64 for float64 parameters), and so is all arithmetic.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _size(x: Tensor, square: bool) -> Tensor:
    return x * x if square else x.abs()


def mas_accumulate_(
    importances: list[Tensor], grads: list[Tensor], weight: float, decay: float, square: bool
) -> None:
    """importances[t] = decay importances[t] + weight sum_n |grads[t][n]| (g^2 where ``square``).

    grads[t] has importances[t]'s shape, or one more dimension in front, samples, each of which is
    made positive before the sum.
    """
    for omega, grad in zip(importances, grads, strict=True):
        size = _size(grad.to(omega.dtype), square)
        size = size.sum(0) if size.dim() > omega.dim() else size
        omega.mul_(decay).add_(size, alpha=weight)


def mas_penalty(params: list[Tensor], anchors: list[Tensor], importances: list[Tensor]) -> Tensor:
    """The sum over all of importances (params - anchors)^2, 0-d."""
    total = torch.zeros((), dtype=importances[0].dtype, device=importances[0].device)
    for p, anchor, omega in zip(params, anchors, importances, strict=True):
        total += (omega * (p.to(omega.dtype) - anchor.to(omega.dtype)) ** 2).sum()
    return total


def mas_penalty_grads_(
    grads: list[Tensor],
    params: list[Tensor],
    anchors: list[Tensor],
    importances: list[Tensor],
    scale: Tensor | None,
    strength: float,
    add: bool,
) -> Tensor:
    """grads[t] += scale strength 2 importances[t] (params[t] - anchors[t]); returns `mas_penalty`.

    Where not ``add``, grads[t] is written, not read. scale: 0-d, or None for 1.
    """
    factor = 2 * strength * (1.0 if scale is None else scale.to(importances[0].dtype))
    for grad, p, anchor, omega in zip(grads, params, anchors, importances, strict=True):
        slope = factor * (omega * (p.to(omega.dtype) - anchor.to(omega.dtype)))
        grad.copy_(grad.to(omega.dtype) + slope if add else slope)
    return mas_penalty(params, anchors, importances)


def linear_importance_(
    importance: Tensor, x: Tensor, grad_out: Tensor, weight: float, square: bool
) -> None:
    """importance[O, I] += weight sum_n |sum_p grad_out[n, p, O] x[n, p, I]|, in place.

    x [N, I] and grad_out [N, O], or with positions [N, P, I] and [N, P, O], which are summed inside
    a sample before the absolute value (or the square). Without positions the sum is one product of
    matrices, |grad_out|^T |x|: the gradient of a sample is an outer product.
    """
    wide = importance.dtype
    x, grad_out = x.to(wide), grad_out.to(wide)
    if x.dim() == 2:
        total = _size(grad_out, square).t() @ _size(x, square)
    else:
        total = _size(grad_out.transpose(1, 2) @ x, square).sum(0)
    importance.add_(total, alpha=weight)
