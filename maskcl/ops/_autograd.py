"""What the ops' autograd Functions share: cheap calls, and a first derivative only."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Backward = Callable[..., tuple[Tensor | None, ...]]


class _Bound:
    """Arguments as they came: what :class:`_Positional` binds."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.args, self.kwargs = args, dict[str, Any]()

    def apply_defaults(self) -> None:
        """The ops' Functions have no defaults."""


class _Positional(inspect.Signature):
    """A signature that binds positional arguments without looking at them.

    ``Function.apply`` binds its arguments by ``inspect.signature`` at every call where the Function
    has a ``setup_context``: 40 of the 60 microseconds that a small op took. ``__signature__`` is
    inspect's own way to say what a signature is.
    """

    def bind(self, *args: Any) -> Any:
        return _Bound(args)


class OpFunction(Function):
    """Base of the ops' Functions: ``forward`` takes positional arguments, and backward is final."""

    def __init_subclass__(cls) -> None:
        parameters = inspect.signature(cls.forward).parameters.values()
        cls.forward.__signature__ = _Positional(list(parameters))  # type: ignore[attr-defined]
        cls.backward = staticmethod(first_order(cls.backward))  # type: ignore[method-assign]


def call(function: type[OpFunction], *args: Any) -> Any:
    """``function.apply(*args)``.

    Raises:
        RuntimeError: torch.compile is tracing a transform of torch.func (grad, vjp, vmap, jvp).
            Dynamo would then trace forward alone, whose kernels have no derivative: zeros.
    """
    if torch.compiler.is_compiling():
        _refuse_transforms()
    return function.apply(*args)


def _refuse_transforms() -> None:
    if _is_transformed():
        raise RuntimeError(
            "maskcl: inside a transform of torch.func (grad, vjp, vmap, jvp) torch.compile would"
            " lose the ops' gradients. Compile without the transform and call"
            " torch.autograd.grad, or transform without compiling."
        )


def _is_transformed() -> bool:
    # Dynamo enters the transforms that it traces, and guards what it compiled by them.
    return torch._C._are_functorch_transforms_active()


# What torch.compiler.assume_constant_result does, which would import the compiler.
_is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _SecondOrder(Function):
    """Identity on ``out`` that depends, for autograd, on all that the gradient came from."""

    generate_vmap_rule = True  # torch.func.jacrev maps backward

    @staticmethod
    def forward(out: Tensor, *sources: Tensor) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "maskcl: the ops have a first derivative only; a second was asked for (double backward,"
            " a gradient penalty). Where you need one, use the formula of maskcl.reference."
        )


def first_order(backward: Backward) -> Backward:
    """``backward`` that raises when differentiated; once_differentiable overlooks saved tensors."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            _refuse_transforms()
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            outs = backward(ctx, *grads)
        tensors = (*grads, *ctx.saved_tensors)
        sources = [t for t in tensors if t is not None and t.requires_grad]
        if not sources:
            return outs
        return tuple(None if o is None else _SecondOrder.apply(o, *sources) for o in outs)

    return wrapped
