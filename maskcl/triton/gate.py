"""Unit gates of HAT in Triton; formulas and shapes as in :mod:`maskcl.reference.gate`."""

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, cdiv, check, on_device_of, tl, triton
from maskcl.triton._formulas import cosh, sigmoid, sigmoid_slope

BLOCK = 1024
# The most partial sums of a reduction: the second stage then holds them all in one vector.
PARTS = 1024


@triton.jit
def _hat_gate_kernel(embedding_ptr, scale_ptr, mask_ptr, units, floor, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < units
    e = tl.load(embedding_ptr + at, mask=live, other=0.0).to(tl.float32)
    s = tl.load(scale_ptr).to(tl.float32)
    m = sigmoid(s * e)
    tl.store(mask_ptr + at, tl.where(m < floor, 0.0, m), mask=live)


@triton.jit
def _hat_gate_backward_kernel(
    grad_ptr,
    embedding_ptr,
    mask_ptr,
    scale_ptr,
    out_ptr,
    units,
    max_scale,
    cosh_clamp,
    RECIPE: tl.constexpr,
    COMPENSATED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < units
    g = tl.load(grad_ptr + at, mask=live, other=0.0).to(tl.float32)
    e = tl.load(embedding_ptr + at, mask=live, other=0.0).to(tl.float32)
    s = tl.load(scale_ptr).to(tl.float32)
    x = s * e
    if RECIPE:
        m = tl.load(mask_ptr + at, mask=live, other=0.0).to(tl.float32)
        out = g * s * (m * (1.0 - m))
        if COMPENSATED:
            clipped = tl.minimum(tl.abs(x), cosh_clamp)
            out = out * (max_scale / s)
            out = out * ((cosh(clipped) + 1.0) / (cosh(e) + 1.0))
    elif COMPENSATED:
        beyond = tl.maximum(tl.abs(x), cosh_clamp)
        tail = (1.0 + tl.exp(-cosh_clamp)) / (1.0 + tl.exp(-beyond))
        out = g * max_scale * sigmoid_slope(e) * (tl.exp(cosh_clamp - beyond) * (tail * tail))
    else:
        out = g * s * sigmoid_slope(x)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def _hat_gates_kernel(
    embedding_ptr,
    scale_ptr,
    share_ptr,
    mask_ptr,
    term_ptr,
    units,
    floor,
    weight,
    BLOCK: tl.constexpr,
):
    """The mask and weight * sum mask share, by one program: units are some thousands."""
    s = tl.load(scale_ptr).to(tl.float32)
    taken = tl.zeros([BLOCK], tl.float32)
    for start in range(0, units, BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < units
        e = tl.load(embedding_ptr + at, mask=live, other=0.0).to(tl.float32)
        m = sigmoid(s * e)
        m = tl.where(m < floor, 0.0, m)
        tl.store(mask_ptr + at, m, mask=live)
        taken += m * tl.load(share_ptr + at, mask=live, other=0.0).to(tl.float32)
    tl.store(term_ptr, weight * tl.sum(taken, 0))


@triton.jit
def _add_term_kernel(grad_ptr, term_ptr, share_ptr, units, weight, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < units
    g = tl.load(grad_ptr + at, mask=live, other=0.0)
    share = tl.load(share_ptr + at, mask=live, other=0.0).to(tl.float32)
    tl.store(grad_ptr + at, g + weight * tl.load(term_ptr).to(tl.float32) * share, mask=live)


@triton.jit
def _sparsity_parts_kernel(
    mask_ptr, used_ptr, parts_ptr, units, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    """parts[:, p] = sums of m (1 - u) and of (1 - u) over the blocks p, p + programs, ..."""
    taken = tl.zeros([BLOCK], tl.float32)
    free = tl.zeros([BLOCK], tl.float32)
    part = tl.program_id(0).to(tl.int64)
    for start in range(part * BLOCK, units, tl.num_programs(0).to(tl.int64) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < units
        m = tl.load(mask_ptr + at, mask=live, other=0.0).to(tl.float32)
        u = tl.load(used_ptr + at, mask=live, other=1).to(tl.float32)
        taken += m * (1.0 - u)
        free += 1.0 - u
    tl.store(parts_ptr + part, tl.sum(taken, 0))
    tl.store(parts_ptr + PARTS + part, tl.sum(free, 0))


@triton.jit
def _sum_of_parts(parts_ptr, parts, PARTS: tl.constexpr):
    at = tl.arange(0, PARTS)
    return tl.sum(tl.load(parts_ptr + at, mask=at < parts, other=0.0), 0)


@triton.jit
def _hat_sparsity_kernel(parts_ptr, out_ptr, parts, PARTS: tl.constexpr):
    taken = _sum_of_parts(parts_ptr, parts, PARTS)
    free = _sum_of_parts(parts_ptr + PARTS, parts, PARTS)
    share = tl.where(free > 0, taken / tl.where(free > 0, free, 1.0), 0.0)
    tl.store(out_ptr, share.to(out_ptr.dtype.element_ty))


@triton.jit
def _hat_sparsity_backward_kernel(
    grad_ptr, used_ptr, parts_ptr, out_ptr, units, parts, PARTS: tl.constexpr, BLOCK: tl.constexpr
):
    free = _sum_of_parts(parts_ptr + PARTS, parts, PARTS)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < units
    u = tl.load(used_ptr + at, mask=live, other=1).to(tl.float32)
    g = tl.load(grad_ptr).to(tl.float32)
    out = tl.where(free > 0, g * (1.0 - u) / tl.where(free > 0, free, 1.0), 0.0)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=live)


def hat_gate(embedding: Tensor, scale: Tensor, floor: float = 0.0) -> Tensor:
    """Mask m = sigmoid(scale e), 0 below ``floor``: embedding [U], scale [] -> float32 [U]."""
    check("hat_gate", "embedding", embedding)
    mask = embedding.new_empty(embedding.shape, dtype=torch.float32)
    units = embedding.numel()
    if units:
        scale = scale.to(embedding.device, non_blocking=True)
        with on_device_of(embedding):
            _hat_gate_kernel[(cdiv(units, BLOCK),)](
                embedding.contiguous(), scale, mask, units, float(floor), BLOCK=BLOCK, **OPTIONS
            )
    return mask


def hat_gate_backward(
    grad: Tensor,
    embedding: Tensor,
    mask: Tensor,
    scale: Tensor,
    max_scale: float,
    cosh_clamp: float,
    recipe: bool,
) -> Tensor:
    """Gradient of the gate [U] in embedding's dtype, compensated where max_scale > 0."""
    check("hat_gate_backward", "embedding", embedding)
    out = embedding.new_empty(embedding.shape)
    units = embedding.numel()
    if units:
        scale = scale.to(embedding.device, non_blocking=True)
        with on_device_of(embedding):
            _hat_gate_backward_kernel[(cdiv(units, BLOCK),)](
                grad.contiguous(),
                embedding.contiguous(),
                mask.contiguous(),
                scale,
                out,
                units,
                float(max_scale),
                float(cosh_clamp),
                RECIPE=recipe,
                COMPENSATED=max_scale > 0,
                BLOCK=BLOCK,
                **OPTIONS,
            )
    return out


def hat_gates(
    embedding: Tensor, scale: Tensor, share: Tensor, floor: float, weight: float
) -> tuple[Tensor, Tensor]:
    """Mask float32 [U] and weight * sum mask share, 0-d: embedding, share [U], scale []."""
    check("hat_gates", "embedding", embedding)
    mask = embedding.new_empty(embedding.shape, dtype=torch.float32)
    term = embedding.new_empty((), dtype=torch.float32)
    scale = scale.to(embedding.device, non_blocking=True)
    with on_device_of(embedding):
        _hat_gates_kernel[(1,)](
            embedding.contiguous(),
            scale,
            share.contiguous(),
            mask,
            term,
            embedding.numel(),
            float(floor),
            float(weight),
            BLOCK=BLOCK,
            **OPTIONS,
        )
    return mask, term


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
    """Gradient of both [U]; a part of ``grads`` without elements is one of zeros."""
    check("hat_gates_backward", "embedding", embedding)
    parts = [
        g if g.numel() else embedding.new_zeros(size) for g, size in zip(grads, sizes, strict=True)
    ]
    grad = torch.cat([part.float() for part in parts])
    units = embedding.numel()
    if grad_term.numel() and units:
        with on_device_of(embedding):
            _add_term_kernel[(cdiv(units, BLOCK),)](
                grad, grad_term, share.contiguous(), units, float(weight), BLOCK=BLOCK, **OPTIONS
            )
    mask = hat_gate(embedding, scale) if recipe else grad  # which only the recipe is made of
    return hat_gate_backward(grad, embedding, mask, scale, max_scale, cosh_clamp, recipe)


def _sparsity_parts(mask: Tensor, used: Tensor) -> tuple[Tensor, Tensor, int]:
    """The contiguous u, the partial sums float32 [2, PARTS], and how many of them are filled."""
    used = used.contiguous()
    if used.dtype == torch.bool:
        used = used.view(torch.uint8)
    units = mask.numel()
    parts = min(cdiv(units, BLOCK), PARTS)
    sums = mask.new_empty((2, PARTS), dtype=torch.float32)
    if parts:
        _sparsity_parts_kernel[(parts,)](
            mask.contiguous(), used, sums, units, PARTS=PARTS, BLOCK=BLOCK, **OPTIONS
        )
    return used, sums, parts


def hat_sparsity(mask: Tensor, used: Tensor) -> Tensor:
    """Share sum m (1 - u) / sum (1 - u): mask, used [U] -> []; 0 if none is free."""
    check("hat_sparsity", "mask", mask)
    out = mask.new_empty(())
    with on_device_of(mask):
        _, sums, parts = _sparsity_parts(mask, used)
        _hat_sparsity_kernel[(1,)](sums, out, parts, PARTS=PARTS, **OPTIONS)
    return out


def hat_sparsity_backward(grad: Tensor, mask: Tensor, used: Tensor) -> Tensor:
    """From grad [], g (1 - u) / sum (1 - u) [U]; exactly 0 where no unit is free."""
    check("hat_sparsity_backward", "mask", mask)
    out = mask.new_empty(mask.shape)
    units = mask.numel()
    if units:
        with on_device_of(mask):
            used, sums, parts = _sparsity_parts(mask, used)
            _hat_sparsity_backward_kernel[(cdiv(units, BLOCK),)](
                grad, used, sums, out, units, parts, PARTS=PARTS, BLOCK=BLOCK, **OPTIONS
            )
    return out
