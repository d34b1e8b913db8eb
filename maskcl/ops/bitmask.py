"""Weight masks as bits: packing, set operations, and weights and layers that read the bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction
from maskcl.ops.weight_mask import linear_arguments, selection
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
    """a & b of two tensors of words of one shape: weights that both masks keep."""
    return _combine("and_words", a, b, "and")


def or_words(a: Tensor, b: Tensor) -> Tensor:
    """a | b of two tensors of words of one shape: weights that either mask keeps."""
    return _combine("or_words", a, b, "or")


def xor_words(a: Tensor, b: Tensor) -> Tensor:
    """a ^ b of two tensors of words of one shape: bits in which the masks differ."""
    return _combine("xor_words", a, b, "xor")


def andnot_words(a: Tensor, b: Tensor) -> Tensor:
    """a & ~b of two tensors of words of one shape: weights that a keeps and b does not."""
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


def packed_weight(weight: Tensor, words: Tensor) -> Tensor:
    """W m with m in bits: reads W and one bit (ternary: two) a weight.

    Equivalent to ``weight * unpack_mask(words, weight.shape)``; gradient g m to the weight.

    Args:
        weight: any shape, floating.
        words: int32, see :func:`pack_mask`.

    Returns:
        Shape and dtype of ``weight``.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check.floating("packed_weight", "weight", weight)
    check_words("packed_weight", words, weight.numel(), f"weight {list(weight.shape)}")
    _check.same_device("packed_weight", "words", words, "weight", weight)
    return PackedWeightFunction.apply(weight, words)


def packed_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (W m)^T + b with m in bits, and no masked weight in memory.

    Equivalent to ``F.linear(x, weight * unpack_mask(words, weight.shape), bias)``. Takes part in
    autocast; gradients to x, weight and bias.

    Args:
        x: [.., I], floating.
        weight: [O, I], x's dtype.
        words: int32, see :func:`pack_mask`.
        bias: [O] or None.

    Returns:
        [.., O] in x's dtype (the autocast dtype under autocast).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    x, weight, bias = linear_arguments("packed_linear", x, weight, bias)
    check_words("packed_linear", words, weight.numel(), f"weight {list(weight.shape)}")
    _check.same_device("packed_linear", "words", words, "weight", weight)
    if x.dim() == 2:
        return PackedLinearFunction.apply(x, weight, words, bias)
    y = PackedLinearFunction.apply(x.reshape(-1, x.shape[-1]), weight, words, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def packed_embedding(index: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    """Rows of W m with m in bits; only the rows asked for are read. No gradient.

    Equivalent to ``F.embedding(index, weight * unpack_mask(words, weight.shape))``.

    Args:
        index: int64 or int32, any shape, from 0 to V - 1. On a CUDA device an index out of range is
            undefined, as checking it would make the host wait.
        weight: [V, D], floating.
        words: int32, see :func:`pack_mask`.

    Returns:
        index's shape and D, in weight's dtype.

    Raises:
        IndexError, RuntimeError: an index is out of range (on the CPU).
        TypeError, ValueError: an argument is not as above.
    """
    op = "packed_embedding"
    _check.floating(op, "weight", weight)
    _check.dimensions(op, "weight", weight, 2)
    check_words(op, words, weight.numel(), f"weight {list(weight.shape)}")
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
        found = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"{op}: index is {found}, wanted int64 or int32")
    for name, tensor in (("words", words), ("index", index)):
        _check.same_device(op, name, tensor, "weight", weight)
    run = backends.select(op, weight)
    return run(index.to(torch.int64), weight.detach(), words)


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


class PackedWeightFunction(OpFunction):
    """W m; the backward is the same op on the gradient."""

    @staticmethod
    def forward(weight: Tensor, words: Tensor) -> Tensor:
        return backends.select("packed_weight", weight)(weight, words)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (words,) = ctx.saved_tensors
        return backends.select("packed_weight", grad)(grad, words), None


class PackedLinearFunction(OpFunction):
    """x (W m)^T + b; the backward unpacks, which serving does not need."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
        return backends.select("packed_linear", x)(x, weight, words, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, words = ctx.saved_tensors
        want_x, want_weight, _, want_bias = ctx.needs_input_grad
        run = backends.select("packed_weight", weight)
        return (
            grad @ run(weight, words) if want_x else None,
            run(grad.t() @ x, words) if want_weight else None,
            None,
            grad.sum(0) if want_bias else None,
        )


@fake("pack_mask")
def _(mask: Tensor, ternary: bool) -> Tensor:
    count = (mask.numel() + 31) // 32
    return mask.new_empty((2, count) if ternary else (count,), dtype=torch.int32)


@fake("pack_scores")
def _(scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool) -> Tensor:
    count = (scores.numel() + 31) // 32
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


@fake("packed_weight")
def _(weight: Tensor, words: Tensor) -> Tensor:
    return torch.empty_like(weight)


@fake("packed_linear")
def _(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@fake("packed_embedding")
def _(index: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    return weight.new_empty((*index.shape, weight.shape[1]))
