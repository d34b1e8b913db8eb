"""Weight masks of one bit (ternary: two) a weight, in plain torch.

Bit i % 32 of word i // 32 is weight i in row-major order; bits past the last weight are 0. A binary
mask of n weights is int32 [ceil(n / 32)], a ternary one int32 [2, ceil(n / 32)]: which weights are
not 0, and which of those change sign.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.reference.weight_mask import mask_values, select_weight

WORD = 32
"""Weights in a word."""


def num_words(numel: int) -> int:
    """Words that hold one bit for each of so many weights."""
    return (numel + WORD - 1) // WORD


def _pack(bits: Tensor) -> Tensor:
    flat = bits.flatten()
    padded = F.pad(flat, (0, num_words(flat.numel()) * WORD - flat.numel())).view(-1, WORD)
    shifts = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return (padded.to(torch.int32) << shifts).sum(1, dtype=torch.int32)


def _bits(words: Tensor, numel: int) -> Tensor:
    """Bool [numel] of one plane."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=words.device)
    return ((words[:, None] >> shifts) & 1).flatten()[:numel] != 0


def pack_mask(mask: Tensor, ternary: bool) -> Tensor:
    """Words of a mask of any shape and dtype: bit = not 0; ternary: a second plane, negative."""
    return torch.stack([_pack(mask != 0), _pack(mask < 0)]) if ternary else _pack(mask != 0)


def pack_scores(
    scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool
) -> Tensor:
    """Words of the mask that the scores give."""
    mask = mask_values(scores, kth, levels, threshold, inclusive, 1.0)
    return pack_mask(mask, levels.startswith("ternary"))


def unpack_mask(words: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The mask of this shape: 0 and 1, or -1, 0 and 1."""
    numel = math.prod(shape)
    if words.dim() == 1:
        return _bits(words, numel).to(dtype).view(shape)
    on, negative = (_bits(plane, numel).to(torch.int8) for plane in words)
    return (on * (1 - 2 * negative)).to(dtype).view(shape)


def combine_words(a: Tensor, b: Tensor, how: str) -> Tensor:
    """and, or, xor, andnot (a and not b), bit by bit."""
    match how:
        case "and":
            return a & b
        case "or":
            return a | b
        case "xor":
            return a ^ b
        case "andnot":
            return a & ~b
    raise ValueError(f"how: found {how!r}, wanted and, or, xor or andnot")


def popcount_words(words: Tensor) -> Tensor:
    """Bits set, int64, summed over the last dimension."""
    x = words.to(torch.int64) & 0xFFFFFFFF
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return (((x * 0x01010101) & 0xFFFFFFFF) >> 24).sum(-1)


def packed_weight(weight: Tensor, words: Tensor) -> Tensor:
    """W m, like ``weight``."""
    return select_weight(weight, unpack_mask(words, list(weight.shape), torch.float32))


def packed_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    """x (W m)^T + b. x [N, I], weight [O, I], bias [O] -> [N, O]."""
    return F.linear(x, packed_weight(weight, words), bias)


def packed_embedding(index: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    """Rows of W m. index int64 [*], weight [V, D] -> [*, D]."""
    return F.embedding(index, packed_weight(weight, words))
