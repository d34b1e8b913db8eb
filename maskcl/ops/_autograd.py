"""First-order backwards: differentiating one again raises instead of dropping terms in silence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Backward = Callable[..., tuple[Tensor | None, ...]]


class _SecondOrder(Function):
    """Identity on ``out`` that depends, for autograd, on all that the gradient was computed from."""

    @staticmethod
    def forward(out: Tensor, *sources: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "maskcl: the ops have a first derivative only; a second was asked for (double backward, "
            "a gradient penalty). use_backend('reference') does not change that: write the formula "
            "of maskcl.reference in your own code where you need it."
        )


def first_order(backward: Backward) -> Backward:
    """Decorator for ``Function.backward``; torch's once_differentiable overlooks saved tensors."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            outs = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return outs
        tensors = (*grads, *ctx.saved_tensors)
        sources = [t for t in tensors if t is not None and t.requires_grad]
        if not sources:
            return outs
        return tuple(None if o is None else _SecondOrder.apply(o, *sources) for o in outs)

    return wrapped
