"""Masks of single weights from learned scores, in plain torch: y = (W m(s)) x.

Piggyback (Mallya et al. 2018, "Piggyback: adapting a single network to multiple tasks by learning
to mask weights", arXiv 1801.06519, section 3): W is frozen, the real-valued scores s learn through
the threshold as if it were not there (straight-through). The family's other selectors share the op:
the largest |s| of a layer (edge-popup, Ramanujan et al. 2020, arXiv 1911.13299; WSN, Kang et al.
2022) and sigmoid-soft masks.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from maskcl.reference.gate import compute_dtype, sigmoid_slope

LEVELS = ("binary", "ternary", "ternary_symmetric", "topk", "soft")


@functools.lru_cache(maxsize=256)  # asked at every step, of a few thresholds
def threshold_for(dtype: torch.dtype, levels: str, threshold: float) -> float:
    """The threshold that scores of ``dtype`` are compared with: rounded to it.

    So torch compares a tensor with a Python number, and so every backend decides s > t, s >= t and
    |s| > t, whatever the weight's dtype. "soft" compares nothing and takes it as it is.
    """
    if levels == "soft":
        return threshold
    return float(torch.tensor(threshold, dtype=torch.float64).to(dtype))


def mask_values(
    scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool, scale: float
) -> Tensor:
    """m(s) in float32 (float64 kept).

    binary: 1 where s > t (s >= t with ``inclusive``), else 0. ternary, the original's: -1 where
    s < 0, 1 where s > t, else 0. ternary_symmetric: sign(s) where |s| > t, else 0. topk: 1 where
    |s| >= kth, else 0. soft: sigmoid(scale (s - t)). NaN scores give 0 (soft: NaN). t is rounded as
    in :func:`threshold_for`.
    """
    dtype = compute_dtype(scores.dtype)
    s = scores.to(dtype)
    t = torch.tensor(threshold_for(scores.dtype, levels, threshold), dtype=dtype, device=s.device)
    match levels:
        case "binary":
            return ((s >= t) if inclusive else (s > t)).to(dtype)
        case "ternary":
            return (s > t).to(dtype) - ((s < 0) & ~(s > t)).to(dtype)
        case "ternary_symmetric":
            return (s > t).to(dtype) - (s < -t).to(dtype)
        case "topk":
            assert kth is not None
            return (s.abs() >= kth.to(dtype)).to(dtype)
        case "soft":
            return torch.sigmoid(scale * (s - t))
    raise ValueError(f"levels: found {levels!r}, wanted one of {', '.join(LEVELS)}")


def select_weight(weight: Tensor, mask: Tensor) -> Tensor:
    """W m in W's dtype; where m is 0 the result is 0 whatever W is."""
    dtype = torch.promote_types(compute_dtype(weight.dtype), mask.dtype)
    product = (weight.to(dtype) * mask.to(dtype)).to(weight.dtype)
    # Fresh memory from the last call: Dynamo of 2.11 drops the gradient of an output that has two
    # names, as copy_() and a to() that changes nothing give it.
    selected = torch.where(mask == 0, 0.0, product)
    if selected.stride() == weight.stride():
        return selected
    # The weight's memory order, as the kernels' outputs have.
    return torch.empty_like(weight).copy_(selected)


def weight_mask(
    scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool, scale: float
) -> Tensor:
    """m(s) in the scores' dtype and shape."""
    mask = mask_values(scores, kth, levels, threshold, inclusive, scale)
    return mask.to(scores.dtype, copy=True)  # fresh memory, as in select_weight


def masked_weight(
    weight: Tensor,
    scores: Tensor,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
) -> Tensor:
    """W m(s), like ``weight``."""
    return select_weight(weight, mask_values(scores, kth, levels, threshold, inclusive, scale))


def masked_weight_backward(
    grad: Tensor,
    weight: Tensor | None,
    scores: Tensor,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
    want_weight: bool,
    want_scores: bool,
) -> tuple[Tensor, Tensor]:
    """(dW = g m like grad, ds = g W like scores; soft: times scale m (1 - m)); [0] if not wanted.

    ``weight`` None stands for ones: the backward of the mask itself.
    """
    dweight, dscores = grad.new_empty(0), scores.new_empty(0)
    if want_weight:
        dweight = select_weight(grad, mask_values(scores, kth, levels, threshold, inclusive, scale))
    if want_scores:
        dtype = torch.promote_types(compute_dtype(grad.dtype), compute_dtype(scores.dtype))
        product = grad.to(dtype)
        if weight is not None:
            product = product * weight.to(dtype)
        if levels == "soft":
            product = product * _soft_slope(scores, threshold, scale).to(dtype)
        dscores = torch.empty_like(scores).copy_(product)
    return dweight, dscores


def _soft_slope(scores: Tensor, threshold: float, scale: float) -> Tensor:
    s = scores.to(compute_dtype(scores.dtype))
    return scale * sigmoid_slope(scale * (s - threshold))


def kth_largest(values: Tensor, k: int, magnitude: bool) -> Tensor:
    """The k-th largest of ``values`` (of their magnitudes), 0-d float32 (float64 kept)."""
    flat = values.detach().flatten().to(compute_dtype(values.dtype))
    if magnitude:
        flat = flat.abs()
    return torch.kthvalue(flat, flat.numel() - k + 1).values


def piggyback_linear(
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    bias: Tensor | None,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
) -> Tensor:
    """x (W m)^T + b. x [N, I], weight and scores [O, I], bias [O] -> [N, O] in x's dtype."""
    masked = masked_weight(weight, scores, kth, levels, threshold, inclusive, scale)
    return torch.nn.functional.linear(x, masked, bias)


def piggyback_linear_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scores: Tensor,
    kth: Tensor | None,
    levels: str,
    threshold: float,
    inclusive: bool,
    scale: float,
    want_x: bool,
    want_weight: bool,
    want_scores: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx = g (W m), dW = G m, ds = G W) with G = g^T x; [0] for what is not wanted."""
    dx, dweight, dscores = x.new_empty(0), weight.new_empty(0), scores.new_empty(0)
    select = (kth, levels, threshold, inclusive, scale)
    if want_x:
        dx = grad @ masked_weight(weight, scores, *select)
    if want_weight or want_scores:
        dtype = compute_dtype(grad.dtype)
        full = grad.to(dtype).t() @ x.to(dtype)
        wanted = (want_weight, want_scores)
        dw, ds = masked_weight_backward(full, weight, scores, *select, *wanted)
        dweight = dw.to(weight.dtype) if want_weight else dweight
        dscores = ds if want_scores else dscores
    return dx, dweight, dscores
