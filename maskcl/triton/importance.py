"""Importances and the quadratic penalty; formulas as in :mod:`maskcl.reference.importance`.

A list is one launch for each dtype (and one more for tensors that do not begin at 16 bytes). The
penalty's value comes from the pass that writes the gradients: a program adds up its own elements,
and one more small kernel adds the programs' sums in their order.
"""

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, check, on_device_of, tl, triton
from maskcl.triton._flat import SAMPLES, TILE, FlatList, flat_lists, flat_pointer, flat_range
from maskcl.triton._formulas import size
from maskcl.triton._linear_importance import linear_importance_
from maskcl.triton._lists import ELEMENT

__all__ = ["linear_importance_", "mas_accumulate_", "mas_penalty", "mas_penalty_grads_"]


@triton.jit
def _accumulate_tile(
    omega_ptr,
    grad_ptr,
    start,
    numel,
    samples,
    between,
    weight,
    decay,
    CUT: tl.constexpr,
    SQUARE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """omega = decay omega + weight sum over samples, for the BLOCK elements from ``start`` on."""
    at = start + tl.arange(0, BLOCK)
    live = tl.full([BLOCK], True, tl.int1)
    if CUT:
        live = at < numel
    omega = tl.load(omega_ptr + at, mask=live)
    if ROWS == 1:
        total = size(tl.load(grad_ptr + at, mask=live).to(tl.float32), SQUARE)
    else:
        sums = tl.zeros([ROWS, BLOCK], tl.float32)
        for first in range(0, samples, ROWS):
            n = first + tl.arange(0, ROWS).to(tl.int64)
            from_sample = grad_ptr + n[:, None] * between
            there = (n < samples)[:, None] & live[None, :]
            g = tl.load(from_sample + at[None, :], mask=there, other=0.0).to(tl.float32)
            sums += size(g, SQUARE)
        total = tl.sum(sums, 0)
    tl.store(omega_ptr + at, omega * decay + total * weight, mask=live)


@triton.jit(do_not_specialize=["tensors", "tiles_each"])
def _accumulate_kernel(
    table_ptr,
    tensors,
    tiles_each,
    weight,
    decay,
    SQUARE: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TENSORS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry, numel, start, cut, end = flat_range(table_ptr, tensors, tiles_each, TENSORS, BLOCK)
    samples = tl.load(entry + 2 * tensors).to(tl.int32)  # a counter of 64 bits spills
    between = tl.load(entry + 3 * tensors)
    between = tl.multiple_of(between, 8) if ALIGNED else between
    omega = flat_pointer(entry + 4 * tensors, tl.float32, ALIGNED)
    grad = flat_pointer(entry + 5 * tensors, DTYPE, ALIGNED)
    for at in range(start, cut, BLOCK):
        _accumulate_tile(
            omega, grad, at, numel, samples, between, weight, decay, False, SQUARE, ROWS, BLOCK
        )
    if cut < end:
        _accumulate_tile(
            omega, grad, cut, numel, samples, between, weight, decay, True, SQUARE, ROWS, BLOCK
        )


@triton.jit
def _penalty_tile(
    p_ptr,
    anchor_ptr,
    omega_ptr,
    grad_ptr,
    start,
    numel,
    factor,
    CUT: tl.constexpr,
    GRADS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Terms of the penalty [BLOCK]; where ``GRADS``, factor omega (p - anchor) is written."""
    at = start + tl.arange(0, BLOCK)
    live = tl.full([BLOCK], True, tl.int1)
    if CUT:
        live = at < numel
    p = tl.load(p_ptr + at, mask=live).to(tl.float32)
    anchor = tl.load(anchor_ptr + at, mask=live).to(tl.float32)
    omega = tl.load(omega_ptr + at, mask=live)
    drift = p - anchor
    if GRADS:
        slope = factor * (omega * drift)
        if ADD:
            slope += tl.load(grad_ptr + at, mask=live).to(tl.float32)
        tl.store(grad_ptr + at, slope.to(grad_ptr.dtype.element_ty), mask=live)
    return tl.where(live, omega * (drift * drift), 0.0)


@triton.jit(do_not_specialize=["tensors", "tiles_each", "first_part"])
def _penalty_kernel(
    table_ptr,
    tensors,
    tiles_each,
    scale_ptr,
    parts_ptr,
    first_part,
    factor,
    SCALED: tl.constexpr,
    GRADS: tl.constexpr,
    ADD: tl.constexpr,
    DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    TENSORS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    entry, numel, start, cut, end = flat_range(table_ptr, tensors, tiles_each, TENSORS, BLOCK)
    p = flat_pointer(entry + 4 * tensors, DTYPE, ALIGNED)
    anchor = flat_pointer(entry + 5 * tensors, DTYPE, ALIGNED)
    omega = flat_pointer(entry + 6 * tensors, tl.float32, ALIGNED)
    grad = p
    if GRADS:
        grad = flat_pointer(entry + 7 * tensors, DTYPE, ALIGNED)
    if SCALED:
        factor *= tl.load(scale_ptr).to(tl.float32)
    terms = tl.zeros([BLOCK], tl.float32)
    for at in range(start, cut, BLOCK):
        terms += _penalty_tile(p, anchor, omega, grad, at, numel, factor, False, GRADS, ADD, BLOCK)
    if cut < end:
        terms += _penalty_tile(p, anchor, omega, grad, cut, numel, factor, True, GRADS, ADD, BLOCK)
    tl.store(parts_ptr + first_part + tl.program_id(0), tl.sum(terms, 0))


@triton.jit(do_not_specialize=["parts"])
def _sum_kernel(parts_ptr, out_ptr, parts, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, parts, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(parts_ptr + at, mask=at < parts, other=0.0)
    tl.store(out_ptr, tl.sum(total, 0))


def _check(op: str, importances: list[Tensor], **lists: list[Tensor]) -> None:
    for name, tensors in lists.items():
        for t, tensor in enumerate(tensors):
            check(op, f"{name}[{t}]", tensor)
    for t, omega in enumerate(importances):
        check(op, f"importances[{t}]", omega, (torch.float32,))


def mas_accumulate_(
    importances: list[Tensor], grads: list[Tensor], weight: float, decay: float, square: bool
) -> None:
    """importances[t] = decay importances[t] + weight sum_n |grads[t][n]| (g^2 where ``square``)."""
    _check("mas_accumulate_", importances, grads=grads)
    for work in flat_lists([importances, grads], typed=1, written=0):
        table, programs, tiles_each = work.schedule(importances[0].device)
        with on_device_of(importances[0]):
            _accumulate_kernel[(programs,)](
                table,
                len(work.entries),
                tiles_each,
                float(weight),
                float(decay),
                SQUARE=square,
                DTYPE=ELEMENT[work.dtype],
                ALIGNED=work.aligned,
                TENSORS=work.tensors,
                ROWS=SAMPLES if work.sampled else 1,
                BLOCK=work.block,
                **OPTIONS,
            )
        work.write_back()


def _penalty(
    works: list[FlatList], like: Tensor, scale: Tensor | None, factor: float, mode: str
) -> Tensor:
    """The penalty, 0-d float32; the gradients are written where mode is "add" or "write"."""
    schedules = [work.schedule(like.device) for work in works]
    parts = like.new_empty(sum(s[1] for s in schedules), dtype=torch.float32)
    out = parts.new_empty(())
    scale = None if scale is None else scale.to(like.device, non_blocking=True)
    first_part = 0
    for work, (table, programs, tiles_each) in zip(works, schedules, strict=True):
        _penalty_kernel[(programs,)](
            table,
            len(work.entries),
            tiles_each,
            parts if scale is None else scale,
            parts,
            first_part,
            factor,
            SCALED=scale is not None,
            GRADS=mode != "value",
            ADD=mode == "add",
            DTYPE=ELEMENT[work.dtype],
            ALIGNED=work.aligned,
            TENSORS=work.tensors,
            BLOCK=work.block,
            **OPTIONS,
        )
        first_part += programs
        work.write_back()
    _sum_kernel[(1,)](parts, out, first_part, BLOCK=TILE, **OPTIONS)
    return out


def mas_penalty(params: list[Tensor], anchors: list[Tensor], importances: list[Tensor]) -> Tensor:
    """The sum over all of importances (params - anchors)^2, 0-d float32."""
    _check("mas_penalty", importances, params=params, anchors=anchors)
    works = flat_lists([params, anchors, importances], typed=0, written=None)
    with on_device_of(params[0]):
        return _penalty(works, params[0], None, 0.0, "value")


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

    Where not ``add``, grads[t] is written, not read.
    """
    _check("mas_penalty_grads_", importances, grads=grads, params=params, anchors=anchors)
    works = flat_lists([params, anchors, importances, grads], typed=0, written=3)
    with on_device_of(params[0]):
        return _penalty(works, params[0], scale, 2.0 * strength, "add" if add else "write")
