"""Masks of weights from scores in Triton; formulas as in :mod:`maskcl.reference.weight_mask`."""

import torch
from torch import Tensor

from maskcl.reference.weight_mask import threshold_for
from maskcl.triton._compat import OPTIONS, cdiv, check, on_device_of, tl, triton
from maskcl.triton._formulas import mask_value, masked, sigmoid_slope
from maskcl.triton._kth import kth_largest
from maskcl.triton._products import (
    Source,
    from_scores,
    from_words,
    masked_product,
    weight_gradient,
)
from maskcl.triton.bitmask import pack_scores
from maskcl.triton.masked_forward import like

__all__ = [
    "kth_largest",
    "masked_weight",
    "masked_weight_backward",
    "piggyback_linear",
    "piggyback_linear_backward",
    "weight_mask",
]

BLOCK = 1024
# A product reads the scores once for each tile of the batch. From this batch on it is cheaper to
# read them once into bits, 1/32 of their size, than to read them so often from the cache.
BITS_FROM = 257


@triton.jit
def _weight_mask_kernel(
    scores_ptr,
    kth_ptr,
    out_ptr,
    count,
    threshold,
    scale,
    LEVELS: tl.constexpr,
    INCLUSIVE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    s = tl.load(scores_ptr + at, mask=live, other=0.0).to(tl.float32)
    kth = 0.0
    if LEVELS == "topk":
        kth = tl.load(kth_ptr).to(tl.float32)
    m = mask_value(s, kth, threshold, scale, LEVELS, INCLUSIVE)
    tl.store(out_ptr + at, m.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def _masked_weight_kernel(
    grad_ptr,
    weight_ptr,
    scores_ptr,
    kth_ptr,
    dweight_ptr,
    dscores_ptr,
    count,
    threshold,
    scale,
    LEVELS: tl.constexpr,
    INCLUSIVE: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    WANT_WEIGHT: tl.constexpr,
    WANT_SCORES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dweight = g m (forward: with g the weight, W m), dscores = g W, for soft times the slope."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    g = tl.load(grad_ptr + at, mask=live, other=0.0)
    if WANT_WEIGHT or LEVELS == "soft":
        s = tl.load(scores_ptr + at, mask=live, other=0.0).to(tl.float32)
    if WANT_WEIGHT:
        kth = 0.0
        if LEVELS == "topk":
            kth = tl.load(kth_ptr).to(tl.float32)
        m = mask_value(s, kth, threshold, scale, LEVELS, INCLUSIVE)
        dw = masked(g, m, LEVELS == "soft")
        tl.store(dweight_ptr + at, dw.to(dweight_ptr.dtype.element_ty), mask=live)
    if WANT_SCORES:
        ds = g.to(tl.float32)
        if HAS_WEIGHT:
            ds *= tl.load(weight_ptr + at, mask=live, other=0.0).to(tl.float32)
        if LEVELS == "soft":
            ds *= scale * sigmoid_slope(scale * (s - threshold))
        tl.store(dscores_ptr + at, ds.to(dscores_ptr.dtype.element_ty), mask=live)


def weight_mask(
    scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool, scale: float
) -> Tensor:
    """m(s) in the scores' dtype and shape."""
    check("weight_mask", "scores", scores)
    out = torch.empty_like(scores)
    count = scores.numel()
    if count:
        s = like(scores, out)
        with on_device_of(scores):
            _weight_mask_kernel[(cdiv(count, BLOCK),)](
                s,
                s if kth is None else kth,
                out,
                count,
                threshold_for(scores.dtype, levels, threshold),
                float(scale),
                LEVELS=levels,
                INCLUSIVE=inclusive,
                BLOCK=BLOCK,
                **OPTIONS,
            )
    return out


def _elementwise(
    grad: Tensor,
    weight: Tensor | None,
    source: Source,
    dweight: Tensor | None,
    dscores: Tensor | None,
) -> None:
    """Launch over tensors of one shape, in the memory order of the first result."""
    first = dweight if dweight is not None else dscores
    if first is None or not first.numel():
        return
    ds = dscores
    if ds is not None and ds.stride() != first.stride():
        ds = torch.empty_like(first, dtype=ds.dtype)
    g, s = like(grad, first), like(source.tensor, first)
    with on_device_of(first):
        _masked_weight_kernel[(cdiv(first.numel(), BLOCK),)](
            g,
            g if weight is None else like(weight, first),
            s,
            s if source.kth is None else source.kth,
            first,
            first if ds is None else ds,
            first.numel(),
            source.threshold,
            source.scale,
            LEVELS=source.levels,
            INCLUSIVE=source.inclusive,
            HAS_WEIGHT=weight is not None,
            WANT_WEIGHT=dweight is not None,
            WANT_SCORES=ds is not None,
            BLOCK=BLOCK,
            **OPTIONS,
        )
    if dscores is not None and ds is not dscores:
        dscores.copy_(ds)


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
    check("masked_weight", "weight", weight)
    check("masked_weight", "scores", scores)
    out = torch.empty_like(weight)
    source = from_scores(scores, kth, levels, threshold, inclusive, scale)
    _elementwise(weight, None, source, out, None)
    return out


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
    """(dW = g m like grad, ds = g W like scores; soft: times its slope), [0] if not wanted."""
    check("masked_weight_backward", "grad", grad)
    check("masked_weight_backward", "scores", scores)
    dweight = torch.empty_like(grad) if want_weight else None
    dscores = torch.empty_like(scores) if want_scores else None
    source = from_scores(scores, kth, levels, threshold, inclusive, scale)
    _elementwise(grad, weight, source, dweight, dscores)
    return (
        grad.new_empty(0) if dweight is None else dweight,
        scores.new_empty(0) if dscores is None else dscores,
    )


def _source(rows: int, scores: Source) -> Source:
    """The scores, or their bits where a batch of so many rows would read them too often."""
    if rows < BITS_FROM or scores.levels == "soft":
        return scores
    select = (scores.kth, scores.levels, scores.threshold, scores.inclusive)
    return from_words(pack_scores(scores.tensor, *select))


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
    """x (W m)^T + b: the masks are made in the product's prologue. x [N, I], W [O, I] -> [N, O]."""
    check("piggyback_linear", "x", x)
    check("piggyback_linear", "scores", scores)
    source = from_scores(scores, kth, levels, threshold, inclusive, scale)
    return masked_product(x, weight, _source(x.shape[0], source), bias, False)


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
    """(dx = g (W m), dW = G m, ds = G W), G = g^T x in float32; [0] for what is not wanted."""
    check("piggyback_linear_backward", "x", x)
    check("piggyback_linear_backward", "scores", scores)
    source = from_scores(scores, kth, levels, threshold, inclusive, scale)
    grad = grad.to(x.dtype)
    dx = x.new_empty(0)
    if want_x:
        dx = masked_product(grad, weight, _source(grad.shape[0], source), None, True)
    dweight = weight.new_empty(weight.shape) if want_weight else None
    dscores = scores.new_empty(scores.shape) if want_scores else None
    if (want_weight or want_scores) and weight.numel():
        full = weight_gradient(grad, x, weight, source, dweight, dscores)
        if full is not None:
            _elementwise(full, weight, source, dweight, dscores)
    return (
        dx,
        weight.new_empty(0) if dweight is None else dweight,
        scores.new_empty(0) if dscores is None else dscores,
    )
