"""Weight masks as bits: packing, unpacking, set operations and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._lists import listed
from maskcl.ops._numbers import Number, integer
from maskcl.ops.selection import selected
from maskcl.reference.bitmask import num_words
from maskcl.schemas import fake

_INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
_PACKED = (torch.bool, *_check.FLOATS, *_INTEGERS)
"""dtypes of masks that the kernels read and write."""


def pack_mask(mask: Tensor, *, ternary: bool = False) -> Tensor:
    """One bit a weight: bit i % 32 of word i // 32 says that element i, row-major, is not 0.

    Args:
        mask: any shape and dtype.
        ternary: keep the signs as well, in a second plane of bits.

    Returns:
        int32 [ceil(n / 32)], or [2, ceil(n / 32)] with ``ternary``; bits past the n-th are 0.

    Raises:
        TypeError: mask is no tensor, or has no sign to keep.
    """
    _check.dense("pack_mask", "mask", mask)
    if ternary and (mask.is_complex() or not mask.dtype.is_signed):
        raise TypeError(f"pack_mask: mask is {mask.dtype}, wanted a signed dtype for ternary")
    if mask.dtype not in _PACKED:  # complex numbers, floats of 8 bits, wide unsigned integers
        mask = mask.to(torch.float32) if ternary else mask != 0
    return backends.select_any("pack_mask", mask)(mask.detach(), bool(ternary))


def pack_scores(
    scores: Tensor,
    threshold: Number = 5e-3,
    *,
    levels: str = "binary",
    inclusive: bool = False,
    density: float | None = None,
) -> Tensor:
    """The words of the mask that scores give, without the mask itself in memory.

    Equivalent to ``pack_mask(binarize(scores, threshold))``.

    Args:
        scores: any shape, floating.
        threshold: as for :func:`piggyback_weight`.
        levels: likewise, but for "soft", which has no bits.
        inclusive: likewise.
        density: likewise.

    Returns:
        As :func:`pack_mask`; two planes for the ternary levels.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check.floating("pack_scores", "scores", scores)
    if levels == "soft":
        raise ValueError(
            "pack_scores: levels is 'soft', which has no bits; pack soft_mask(..) > .5"
        )
    scores, select = selected("pack_scores", scores, threshold, levels, inclusive, density)
    run = backends.select("pack_scores", scores)
    return run(scores.detach(), *select[:4])


def unpack_mask(
    words: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The mask that :func:`pack_mask` packed.

    Args:
        words: int32 [ceil(n / 32)], or [2, ceil(n / 32)] ternary.
        shape: of the mask, n elements.
        dtype: floating (8 bits apart) or integer; signed for ternary words. bool for binary ones.

    Returns:
        0 and 1, or -1, 0 and 1, of this shape and dtype.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    sizes = [
        integer("unpack_mask", "shape", size, 0) for size in listed("unpack_mask", "shape", shape)
    ]
    check_words("unpack_mask", words, math.prod(sizes), f"shape {sizes}")
    if dtype not in _PACKED:
        raise TypeError(f"unpack_mask: dtype is {dtype}, wanted a floating or integer one, or bool")
    if words.dim() == 2 and not dtype.is_signed:
        raise TypeError(f"unpack_mask: dtype is {dtype}, wanted a signed one for ternary words")
    return backends.select_any("unpack_mask", words)(words, sizes, dtype)


def and_words(a: Tensor, b: Tensor) -> Tensor:
    """a & b: weights that both masks keep.

    Args:
        a: int32 words, any shape.
        b: int32 words of a's shape.

    Returns:
        int32 of a's shape.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    return _combine("and_words", a, b, "and")


def or_words(a: Tensor, b: Tensor) -> Tensor:
    """a | b: weights that either mask keeps; arguments and errors as for :func:`and_words`."""
    return _combine("or_words", a, b, "or")


def xor_words(a: Tensor, b: Tensor) -> Tensor:
    """a ^ b: bits in which the masks differ; arguments and errors as for :func:`and_words`."""
    return _combine("xor_words", a, b, "xor")


def andnot_words(a: Tensor, b: Tensor) -> Tensor:
    """a & ~b: weights that a keeps and b does not; all else as for :func:`and_words`."""
    return _combine("andnot_words", a, b, "andnot")


def popcount(words: Tensor) -> Tensor:
    """Number of bits set along the last dimension.

    Args:
        words: int32 [.., W].

    Returns:
        int64 [..].

    Raises:
        TypeError, ValueError: words is not as above.
    """
    _check.of_dtype("popcount", "words", words, torch.int32)
    if words.dim() == 0:
        raise ValueError("popcount: words has shape [], wanted at least one dimension")
    return backends.select_any("popcount_words", words)(words)


def check_words(op: str, words: Tensor, numel: int, where: str) -> None:
    """Raise unless ``words`` are those of a mask of ``numel`` weights."""
    _check.of_dtype(op, "words", words, torch.int32)
    wanted = num_words(numel)
    if words.dim() not in (1, 2) or words.shape[-1] != wanted or words.shape[:-1] not in ((), (2,)):
        raise ValueError(
            f"{op}: words has shape {list(words.shape)}, wanted [{wanted}] or, ternary,"
            f" [2, {wanted}] for {where}"
        )


def _combine(op: str, a: Tensor, b: Tensor, how: str) -> Tensor:
    _check.of_dtype(op, "a", a, torch.int32)
    _check.of_dtype(op, "b", b, torch.int32)
    _check.same_shape(op, "b", b, "a", a)
    _check.same_device(op, "b", b, "a", a)
    return backends.select_any("combine_words", a)(a, b, how)


@fake("pack_mask")
def _(mask: Tensor, ternary: bool) -> Tensor:
    count = num_words(mask.numel())
    return mask.new_empty((2, count) if ternary else (count,), dtype=torch.int32)


@fake("pack_scores")
def _(scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool) -> Tensor:
    count = num_words(scores.numel())
    shape = (2, count) if levels.startswith("ternary") else (count,)
    return scores.new_empty(shape, dtype=torch.int32)


@fake("unpack_mask")
def _(words: Tensor, shape: list[int], dtype: torch.dtype) -> Tensor:
    return words.new_empty(shape, dtype=dtype)


@fake("combine_words")
def _(a: Tensor, b: Tensor, how: str) -> Tensor:
    return torch.empty_like(a)


@fake("popcount_words")
def _(words: Tensor) -> Tensor:
    return words.new_empty(words.shape[:-1], dtype=torch.int64)
