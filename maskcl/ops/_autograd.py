"""What the ops' autograd Functions share: cheap calls, and a first derivative only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Backward = Callable[..., tuple[Tensor | None, ...]]


class OpFunction(Function):
    """Base of the ops' Functions: ``forward`` takes positional arguments, and backward is final."""

    _eager: type[Function]

    @staticmethod
    def result(output: Any) -> Any:
        """What of forward's output is handed on; the rest is for ``setup_context`` alone.

        Transforms and the compiler, which want all that is kept as an output, hand on everything.
        """
        return output

    def __init_subclass__(cls) -> None:
        cls._eager = _in_older_style(cls)
        cls.backward = staticmethod(_refusing(cls._eager.backward))  # type: ignore[method-assign]


def _in_older_style(function: type[OpFunction]) -> type[Function]:
    """The same Function without ``setup_context``, which torch applies in half the time.

    Where there is one, which transforms of torch.func and the compiler need, ``apply`` binds its
    arguments by ``inspect.signature`` at every call.
    """
    run, keep, backward = function.forward, function.setup_context, function.backward
    result = None if function.result is OpFunction.result else function.result

    def forward(ctx: Any, *args: Any) -> Any:
        output = run(*args)
        keep(ctx, args, output)
        return output if result is None else result(output)

    body = {"forward": staticmethod(forward), "backward": staticmethod(first_order(backward))}
    return type(function.__name__, (Function,), body)


def _refusing(backward: Backward) -> Backward:
    """``backward`` for the compiler, which loses it inside a transform of torch.func."""

    @functools.wraps(backward)
    def wrapped(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.compiler.is_compiling():
            _refuse_transforms()
        return backward(ctx, *grads)

    return wrapped


def call(function: type[OpFunction], *args: Any) -> Any:
    """``function.apply(*args)``.

    Raises:
        RuntimeError: torch.compile is tracing a transform of torch.func (grad, vjp, vmap, jvp).
            Dynamo would then trace forward alone, whose kernels have no derivative: zeros.
    """
    if torch.compiler.is_compiling():
        _refuse_transforms()
        return function.apply(*args)
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return function._eager.apply(*args)


def _refuse_transforms() -> None:
    if is_transformed():
        raise RuntimeError(
            "maskcl: inside a transform of torch.func (grad, vjp, vmap, jvp) torch.compile would"
            " lose the ops' gradients. Compile without the transform and call"
            " torch.autograd.grad, or transform without compiling."
        )


def is_transformed() -> bool:
    """Whether a transform of torch.func is at work; to Dynamo a constant."""
    # Dynamo enters the transforms that it traces, and guards what it compiled by them.
    return torch._C._are_functorch_transforms_active()


# What torch.compiler.assume_constant_result does, which would import the compiler.
is_transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]


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
