"""Weights, linear layers and embeddings that read their weights' masks from bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops.bitmask import check_words
from maskcl.schemas import fake


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
    return call(PackedWeightFunction, weight, words)


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


def packed_linear(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (W m)^T + b with m in bits, and no masked weight in memory.

    Equivalent to ``F.linear(x, weight * unpack_mask(words, weight.shape), bias)``, within rounding:
    sums are in an order of their own. Takes part in autocast; gradients to x, weight and bias.

    Args:
        x: [.., I], floating.
        weight: [O, I], x's dtype.
        words: int32, see :func:`pack_mask`.
        bias: [O], x's dtype, or None.

    Returns:
        [.., O] in x's dtype (the autocast dtype under autocast).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    x, weight, bias = _check.linear_arguments("packed_linear", x, weight, bias)
    check_words("packed_linear", words, weight.numel(), f"weight {list(weight.shape)}")
    _check.same_device("packed_linear", "words", words, "weight", weight)
    if x.dim() == 2:
        return call(PackedLinearFunction, x, weight, words, bias)
    y = call(PackedLinearFunction, x.reshape(-1, x.shape[-1]), weight, words, bias)
    return y.view(*x.shape[:-1], weight.shape[0])


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
    _check.dense(op, "index", index)
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{op}: index is {index.dtype}, wanted int64 or int32")
    for name, tensor in (("words", words), ("index", index)):
        _check.same_device(op, name, tensor, "weight", weight)
    run = backends.select(op, weight)
    return run(index.to(torch.int64), weight.detach(), words)


@fake("packed_weight")
def _(weight: Tensor, words: Tensor) -> Tensor:
    return torch.empty_like(weight)


@fake("packed_linear")
def _(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@fake("packed_embedding")
def _(index: Tensor, weight: Tensor, words: Tensor) -> Tensor:
    return weight.new_empty((*index.shape, weight.shape[1]))
