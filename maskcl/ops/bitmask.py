"""Weight masks as bits: packing, unpacking, set operations and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops.selection import selection
from maskcl.reference.bitmask import num_words
from maskcl.schemas import fake


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
    if not isinstance(mask, Tensor):
        raise TypeError(f"pack_mask: mask is a {type(mask).__name__}, wanted a tensor")
    if ternary and (mask.dtype in (torch.bool, torch.uint8) or mask.is_complex()):
        raise TypeError(f"pack_mask: mask is {mask.dtype}, wanted a signed dtype for ternary")
    return backends.select_any("pack_mask", mask)(mask.detach(), ternary)


def pack_scores(
    scores: Tensor,
    threshold: float = 5e-3,
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
    kth, levels, threshold, inclusive, _ = selection(
        "pack_scores", scores, threshold, levels, inclusive, density
    )
    run = backends.select("pack_scores", scores)
    return run(scores.detach(), kth, levels, threshold, inclusive)


def unpack_mask(
    words: Tensor, shape: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The mask that :func:`pack_mask` packed.

    Args:
        words: int32 [ceil(n / 32)], or [2, ceil(n / 32)] ternary.
        shape: of the mask, n elements.
        dtype: floating, signed, or bool for a binary mask.

    Returns:
        0 and 1, or -1, 0 and 1, of this shape and dtype.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    check_words("unpack_mask", words, math.prod(shape), f"shape {list(shape)}")
    if words.dim() == 2 and dtype in (torch.bool, torch.uint8):
        raise TypeError(f"unpack_mask: dtype is {dtype}, wanted a signed one for ternary words")
    return backends.select_any("unpack_mask", words)(words, list(shape), dtype)


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
    _check_dtype("popcount", "words", words)
    if words.dim() == 0:
        raise ValueError("popcount: words has shape [], wanted at least one dimension")
    return backends.select_any("popcount_words", words)(words)


def check_words(op: str, words: Tensor, numel: int, where: str) -> None:
    """Raise unless ``words`` are those of a mask of ``numel`` weights."""
    _check_dtype(op, "words", words)
    wanted = num_words(numel)
    if words.dim() not in (1, 2) or words.shape[-1] != wanted or words.shape[:-1] not in ((), (2,)):
        raise ValueError(
            f"{op}: words has shape {list(words.shape)}, wanted [{wanted}] or, ternary,"
            f" [2, {wanted}] for {where}"
        )


def _check_dtype(op: str, name: str, words: Tensor) -> None:
    if not isinstance(words, Tensor):
        raise TypeError(f"{op}: {name} is a {type(words).__name__}, wanted a tensor")
    if words.dtype != torch.int32:
        raise TypeError(f"{op}: {name} is {words.dtype}, wanted torch.int32")


def _combine(op: str, a: Tensor, b: Tensor, how: str) -> Tensor:
    _check_dtype(op, "a", a)
    _check_dtype(op, "b", b)
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
