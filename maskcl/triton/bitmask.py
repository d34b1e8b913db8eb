"""Weight masks as bits in Triton; words as in :mod:`maskcl.reference.bitmask`."""

import math

import torch
from torch import Tensor

from maskcl.reference.weight_mask import threshold_for
from maskcl.triton._compat import OPTIONS, cdiv, check, on_device_of, power_of_2, tl, triton
from maskcl.triton._formulas import bit_value, mask_value, masked
from maskcl.triton._products import from_words, masked_product
from maskcl.triton._vector import masked_vector
from maskcl.triton.masked_forward import like

WORDS = 32  # words of a program, of 32 weights each
BLOCK = 1024
PARTS = 64  # programs at most that count the bits of a row
# Dtypes that kernels read and write as they are.
_STORED = {
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
}


@triton.jit
def _pack_kernel(
    values_ptr,
    kth_ptr,
    words_ptr,
    count,
    words,
    threshold,
    LEVELS: tl.constexpr,
    INCLUSIVE: tl.constexpr,
    TERNARY: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Bits of the mask that ``values`` are (LEVELS "mask") or that they give as scores."""
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    at = word[:, None] * 32 + bit[None, :]
    v = tl.load(values_ptr + at, mask=at < count, other=0)
    if LEVELS != "mask":
        kth = 0.0
        if LEVELS == "topk":
            kth = tl.load(kth_ptr).to(tl.float32)
        v = mask_value(v.to(tl.float32), kth, threshold, 1.0, LEVELS, INCLUSIVE)
    elif v.dtype.is_bf16():
        v = v.to(tl.float32)
    on = (v != 0) & (at < count)
    packed = tl.sum(on.to(tl.int32) << bit[None, :], 1)  # bits do not meet, so that + is or
    tl.store(words_ptr + word, packed, mask=word < words)
    if TERNARY:
        packed = tl.sum((on & (v < 0)).to(tl.int32) << bit[None, :], 1)
        tl.store(words_ptr + words + word, packed, mask=word < words)


@triton.jit
def _unpack_kernel(
    words_ptr,
    weight_ptr,
    out_ptr,
    count,
    words,
    HAS_WEIGHT: tl.constexpr,
    TERNARY: tl.constexpr,
    WORDS: tl.constexpr,
):
    """The mask that the words say, or the weight times it."""
    word = tl.program_id(0).to(tl.int64) * WORDS + tl.arange(0, WORDS)
    bit = tl.arange(0, 32)
    on = tl.load(words_ptr + word, mask=word < words, other=0)[:, None] >> bit[None, :]
    negative = on
    if TERNARY:
        plane = words_ptr + words + word
        negative = tl.load(plane, mask=word < words, other=0)[:, None] >> bit[None, :]
    out = bit_value(on, negative, TERNARY)
    at = word[:, None] * 32 + bit[None, :]
    if HAS_WEIGHT:
        out = masked(tl.load(weight_ptr + at, mask=at < count, other=0.0), out, False)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=at < count)


@triton.jit
def _combine_kernel(a_ptr, b_ptr, out_ptr, words, HOW: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(a_ptr + at, mask=at < words, other=0)
    b = tl.load(b_ptr + at, mask=at < words, other=0)
    if HOW == "and":
        out = a & b
    elif HOW == "or":
        out = a | b
    elif HOW == "xor":
        out = a ^ b
    else:
        out = a & ~b
    tl.store(out_ptr + at, out, mask=at < words)


@triton.jit
def _popcount_kernel(words_ptr, parts_ptr, words, BLOCK: tl.constexpr):
    """parts[row, p]: bits set in blocks p, p + programs, .. of the row."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(part * BLOCK, words, tl.num_programs(1).to(tl.int64) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(words_ptr + row * words + at, mask=at < words, other=0)
        x = x.to(tl.uint32, bitcast=True)
        x = x - ((x >> 1) & 0x55555555)
        x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
        x = (x + (x >> 4)) & 0x0F0F0F0F
        x = x + (x >> 8)
        total += ((x + (x >> 16)) & 63).to(tl.int64)
    tl.store(parts_ptr + row * tl.num_programs(1) + part, tl.sum(total, 0))


@triton.jit(do_not_specialize=["rows"])
def _embedding_kernel(
    index_ptr,
    weight_ptr,
    words_ptr,
    out_ptr,
    rows,
    entries,
    width,
    words,
    TERNARY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    d = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    entry = tl.load(index_ptr + r, mask=r < rows, other=0)
    live = (r < rows)[:, None] & (d < width)[None, :]
    # An entry that is not there reads as 0, and nothing beside the weight.
    read = live & ((entry >= 0) & (entry < entries))[:, None]
    at = entry[:, None] * width + d[None, :]
    shift = (at & 31).to(tl.int32)
    on = tl.load(words_ptr + (at >> 5), mask=read, other=0) >> shift
    negative = on
    if TERNARY:
        negative = tl.load(words_ptr + words + (at >> 5), mask=read, other=0) >> shift
    w = tl.load(weight_ptr + at, mask=read, other=0.0)
    out = masked(w, bit_value(on, negative, TERNARY), False)
    tl.store(out_ptr + r[:, None] * width + d[None, :], out, mask=live)


def _pack(
    values: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool, planes: int
) -> Tensor:
    count = values.numel()
    words = cdiv(count, 32)
    out = values.new_empty((2, words) if planes == 2 else (words,), dtype=torch.int32)
    if count:
        values = values.contiguous()
        with on_device_of(values):
            _pack_kernel[(cdiv(words, WORDS),)](
                values,
                values if kth is None else kth,
                out,
                count,
                words,
                float(threshold),
                LEVELS=levels,
                INCLUSIVE=inclusive,
                TERNARY=planes == 2,
                WORDS=WORDS,
                **OPTIONS,
            )
    return out


def pack_mask(mask: Tensor, ternary: bool) -> Tensor:
    """Words of a mask of any shape and dtype: bit = not 0; ternary: a second plane, negative."""
    check("pack_mask", "mask", mask, None)
    if mask.dtype not in _STORED:
        mask = mask != 0 if not ternary else mask.float()
    if mask.dtype == torch.bool:
        mask = mask.contiguous().view(torch.uint8)
    return _pack(mask, None, "mask", 0.0, False, 2 if ternary else 1)


def pack_scores(
    scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool
) -> Tensor:
    """Words of the mask that the scores give; the mask itself is never in memory."""
    check("pack_scores", "scores", scores)
    threshold = threshold_for(scores.dtype, levels, threshold)
    return _pack(scores, kth, levels, threshold, inclusive, 2 if "ternary" in levels else 1)


def _unpack(words: Tensor, weight: Tensor | None, out: Tensor) -> None:
    """Write the mask, or the weight times it, to ``out``; weight and out are contiguous."""
    if not out.numel():
        return
    words = words.contiguous()
    with on_device_of(words):
        _unpack_kernel[(cdiv(words.shape[-1], WORDS),)](
            words,
            words if weight is None else weight,
            out,
            out.numel(),
            words.shape[-1],
            HAS_WEIGHT=weight is not None,
            TERNARY=words.dim() == 2,
            WORDS=WORDS,
            **OPTIONS,
        )


def unpack_mask(words: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The mask of this shape: 0 and 1, or -1, 0 and 1."""
    check("unpack_mask", "words", words, (torch.int32,))
    if dtype not in _STORED and dtype != torch.bool:
        return unpack_mask(words, shape, torch.float32).to(dtype)
    out = words.new_empty(shape, dtype=dtype)
    _unpack(words, None, out.view(torch.uint8) if dtype == torch.bool else out)
    return out


def combine_words(a: Tensor, b: Tensor, how: str) -> Tensor:
    """and, or, xor, andnot (a and not b), bit by bit."""
    check("combine_words", "a", a, (torch.int32,))
    if how not in ("and", "or", "xor", "andnot"):
        raise ValueError(f"how: found {how!r}, wanted and, or, xor or andnot")
    out = torch.empty_like(a)
    if a.numel():
        words = a.numel()
        with on_device_of(a):
            _combine_kernel[(cdiv(words, BLOCK),)](
                like(a, out), like(b, out), out, words, HOW=how, BLOCK=BLOCK, **OPTIONS
            )
    return out


def popcount_words(words: Tensor) -> Tensor:
    """Bits set, int64, summed over the last dimension."""
    check("popcount_words", "words", words, (torch.int32,))
    *shape, width = words.shape
    if not words.numel():
        return words.new_zeros(shape, dtype=torch.int64)
    parts = min(PARTS, cdiv(width, BLOCK))
    counts = words.new_empty((*shape, parts), dtype=torch.int64)
    with on_device_of(words):
        _popcount_kernel[(math.prod(shape), parts)](
            words.contiguous(), counts, width, BLOCK=BLOCK, **OPTIONS
        )
    return counts.sum(-1)


def packed_weight(weight: Tensor, words: Tensor) -> Tensor:
    """W m, like ``weight``."""
    check("packed_weight", "weight", weight)
    out = torch.empty_like(weight)
    if out.is_contiguous():
        _unpack(words, weight.contiguous(), out)
        return out
    ordered = weight.new_empty(weight.shape)
    _unpack(words, weight.contiguous(), ordered)
    return out.copy_(ordered)


def packed_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    """x (W m)^T + b, a bit read for a weight. x [N, I], weight [O, I], bias [O] -> [N, O]."""
    check("packed_linear", "x", x)
    if x.shape[0] == 1 and x.shape[1] % 32 == 0:
        return masked_vector(x, weight, words, bias)
    return masked_product(x, weight, from_words(words), bias, False)


def packed_embedding(index: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    """Rows of W m. index int64 [*], weight [V, D] -> [*, D]; entries out of range give 0."""
    check("packed_embedding", "weight", weight)
    entries, width = weight.shape
    out = weight.new_empty((*index.shape, width))
    if out.numel():
        words = words.contiguous()
        rows, columns = index.numel(), min(power_of_2(width), BLOCK)
        tall = min(power_of_2(rows), BLOCK // columns)
        with on_device_of(weight):
            _embedding_kernel[(cdiv(rows, tall), cdiv(width, columns))](
                index.contiguous(),
                weight.contiguous(),
                words,
                out,
                rows,
                entries,
                width,
                words.shape[-1],
                TERNARY=words.dim() == 2,
                ROWS=tall,
                COLUMNS=columns,
                **OPTIONS,
            )
    return out
