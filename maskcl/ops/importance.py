"""Importances of parameters (MAS, EWC) and the quadratic penalty that they weigh.

Lists hold a whole model: one call, one pass over memory, one launch on a GPU. Importances are
float32, for float64 parameters float64, whatever the parameters are stored in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction
from maskcl.schemas import fake

Tensors = Sequence[Tensor]


@torch.no_grad()
def mas_accumulate_(
    importances: Tensors,
    grads: Tensors,
    weight: float = 1.0,
    *,
    decay: float = 1.0,
    square: bool = False,
) -> None:
    """importances[t] = decay * importances[t] + weight * |grads[t]|, in place, in one pass.

    Args:
        importances: list, float32 (float64 for float64 gradients), one device.
        grads: for each, a tensor of its shape, or [N, *its shape]: samples, summed after the
            absolute value, as MAS means it (Aljundi et al. 2018, eq. 2).
        weight: of what is added.
        decay: of what is there: below 1 for online EWC (Schwarz et al. 2018, eq. 8).
        square: g^2 for |g|: Fisher information (Kirkpatrick et al. 2017).

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "mas_accumulate_"
    _check_lengths(op, importances, "importances", grads=grads)
    for t, (omega, grad) in enumerate(zip(importances, grads, strict=True)):
        if _fits(omega, (grad,), grads[0]):
            continue
        _check_member(op, f"grads[{t}]", grad, importances[0])
        _check_importance(op, f"importances[{t}]", omega, f"grads[{t}]", grad)
        if grad.shape not in (omega.shape, (*grad.shape[:1], *omega.shape)):
            raise ValueError(
                f"{op}: grads[{t}] has shape {list(grad.shape)}, wanted importances[{t}]'s,"
                f" {list(omega.shape)}, or that with samples in front"
            )
    if importances:
        run = backends.select(op, grads[0])
        run(list(importances), list(grads), float(weight), float(decay), square)


def mas_penalty(params: Tensors, anchors: Tensors, importances: Tensors) -> Tensor:
    """The sum over all of importances * (params - anchors)^2 (MAS, eq. 3; EWC, eq. 3).

    Args:
        params: list of floating tensors, one device; gradients go to these alone.
        anchors: for each, a tensor of its shape and dtype.
        importances: for each, float32 (float64) of its shape.

    Returns:
        0-d, float32 (float64). Summed in the same order on any number of threads.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check_penalty("mas_penalty", params, anchors, importances)
    if not params:
        return torch.zeros(())
    return _Penalty.apply(len(params), *params, *anchors, *importances)


@torch.no_grad()
def mas_penalty_grads_(
    grads: Tensors,
    params: Tensors,
    anchors: Tensors,
    importances: Tensors,
    strength: float = 1.0,
) -> Tensor:
    """Add to ``grads`` the gradient of strength * `mas_penalty`, in one pass and without a graph.

    Args:
        grads: list like ``params``; grads[t] += 2 strength importances[t] (params[t] - anchors[t]).
        params: as for :func:`mas_penalty`.
        anchors: as there.
        importances: as there.
        strength: lambda.

    Returns:
        strength * `mas_penalty`, the term of the loss that was added; 0-d.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "mas_penalty_grads_"
    _check_penalty(op, params, anchors, importances, grads=grads)
    if not params:
        return torch.zeros(())
    run = backends.select(op, params[0])
    lists = [list(tensors) for tensors in (grads, params, anchors, importances)]
    return run(*lists, None, float(strength), True) * strength


def linear_importance(x: Tensor, grad_out: Tensor, *, square: bool = False) -> Tensor:
    """Sum over samples of |dF/dW| for y = x W^T, exactly, in one product of matrices.

    A sample's gradient is the outer product of its rows of ``grad_out`` and ``x``, so the sum of
    absolute values is |grad_out|^T |x|. Rows must be samples that do not mix.

    Args:
        x: [N, I], or [N, P, I]: P positions, which share W and are summed inside a sample first.
        grad_out: dF/dy, [N, O] or [N, P, O], x's dtype.
        square: squares for absolute values.

    Returns:
        [O, I], float32 (float64).

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check_rows("linear_importance", x, grad_out)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    importance = x.new_zeros((grad_out.shape[-1], x.shape[-1]), dtype=dtype)
    linear_importance_(importance, x, grad_out, square=square)
    return importance


@torch.no_grad()
def linear_importance_(
    importance: Tensor, x: Tensor, grad_out: Tensor, weight: float = 1.0, *, square: bool = False
) -> None:
    """importance += weight * `linear_importance`, in place.

    Args:
        importance: [O, I], float32 (float64 for float64 inputs).
        x: as for :func:`linear_importance`.
        grad_out: as there.
        weight: of what is added.
        square: as there.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "linear_importance_"
    _check_rows(op, x, grad_out)
    _check_importance(op, "importance", importance, "x", x)
    wanted = [grad_out.shape[-1], x.shape[-1]]
    if list(importance.shape) != wanted:
        raise ValueError(f"{op}: importance has shape {list(importance.shape)}, wanted {wanted}")
    backends.select(op, x)(importance, x, grad_out, float(weight), square)


class _Penalty(OpFunction):
    """``params``, ``anchors`` and ``importances`` one after the other, ``count`` of each."""

    @staticmethod
    def forward(count: int, *tensors: Tensor) -> Tensor:
        lists = [list(tensors[i * count : (i + 1) * count]) for i in range(3)]
        return backends.select("mas_penalty", tensors[0])(*lists)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.count = inputs[0]
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        count, tensors = ctx.count, ctx.saved_tensors
        params, anchors, importances = (
            list(tensors[i * count : (i + 1) * count]) for i in range(3)
        )
        grads = [torch.empty_like(p) for p in params]
        run = backends.select("mas_penalty_grads_", params[0])
        run(grads, params, anchors, importances, grad, 1.0, False)
        return (None, *grads, *[None] * (2 * count))


def _check_lengths(op: str, tensors: Tensors, name: str, **lists: Tensors) -> None:
    for other, entries in lists.items():
        if len(entries) != len(tensors):
            raise ValueError(
                f"{op}: {other} has {len(entries)} entries, wanted {name}'s {len(tensors)}"
            )


_WIDE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def _fits(omega: Tensor, tensors: Sequence[Tensor], first: Tensor) -> bool:
    """Whether nothing is wrong with an entry, asked briefly: lists are long and their op short.

    What does not fit so, such as samples in front, is looked at once more, argument by argument.
    """
    for tensor in (omega, first, *tensors):
        if not isinstance(tensor, Tensor):
            return False
    dtype, device, shape = tensors[0].dtype, first.device, omega.shape
    wide = _WIDE.get(dtype)
    if wide is not omega.dtype or wide is not _WIDE.get(first.dtype) or omega.device != device:
        return False
    for tensor in tensors:
        if tensor.dtype is not dtype or tensor.shape != shape or tensor.device != device:
            return False
    return True


def _check_member(op: str, name: str, tensor: Tensor, first: Tensor) -> None:
    """A floating tensor on the list's device."""
    _check.floating(op, name, tensor)
    if tensor.device != first.device:
        raise ValueError(f"{op}: {name} is on {tensor.device}, wanted {first.device}")
    if tensor.dtype != first.dtype and torch.float64 in (tensor.dtype, first.dtype):
        raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted no mixture with float64")


def _check_importance(op: str, name: str, omega: Tensor, of: str, tensor: Tensor) -> None:
    _check.floating(op, name, omega)
    wanted = torch.float64 if tensor.dtype == torch.float64 else torch.float32
    if omega.dtype != wanted:
        raise TypeError(f"{op}: {name} is {omega.dtype}, wanted {wanted} for {of}")
    _check.same_device(op, name, omega, of, tensor)


def _check_penalty(
    op: str, params: Tensors, anchors: Tensors, importances: Tensors, **more: Tensors
) -> None:
    _check_lengths(op, params, "params", anchors=anchors, importances=importances, **more)
    like_params = {"anchors": anchors, **more}
    for t, param in enumerate(params):
        tensors = (param, *(entries[t] for entries in like_params.values()))
        if _fits(importances[t], tensors, params[0]):
            continue
        _check_member(op, f"params[{t}]", param, params[0])
        for name, entries in like_params.items():
            tensor = entries[t]
            _check.same_shape(op, f"{name}[{t}]", tensor, f"params[{t}]", param)
            _check.same_device(op, f"{name}[{t}]", tensor, f"params[{t}]", param)
            if tensor.dtype != param.dtype:
                raise TypeError(
                    f"{op}: {name}[{t}] is {tensor.dtype}, wanted params[{t}]'s {param.dtype}"
                )
        _check_importance(op, f"importances[{t}]", importances[t], f"params[{t}]", param)
        _check.same_shape(op, f"importances[{t}]", importances[t], f"params[{t}]", param)


def _check_rows(op: str, x: Tensor, grad_out: Tensor) -> None:
    _check.floating(op, "x", x)
    _check.floating(op, "grad_out", grad_out)
    if x.dim() not in (2, 3):
        raise ValueError(f"{op}: x has shape {list(x.shape)}, wanted [N, I] or [N, P, I]")
    if grad_out.shape[:-1] != x.shape[:-1] or grad_out.dim() != x.dim():
        raise ValueError(
            f"{op}: grad_out has shape {list(grad_out.shape)}, wanted {[*x.shape[:-1], 'O']}"
        )
    if grad_out.dtype != x.dtype:
        raise TypeError(f"{op}: grad_out is {grad_out.dtype}, wanted x's {x.dtype}")
    _check.same_device(op, "grad_out", grad_out, "x", x)


@fake("mas_accumulate_")
def _(
    importances: list[Tensor], grads: list[Tensor], weight: float, decay: float, square: bool
) -> None:
    return None


@fake("mas_penalty")
def _(params: list[Tensor], anchors: list[Tensor], importances: list[Tensor]) -> Tensor:
    return importances[0].new_empty(())


@fake("mas_penalty_grads_")
def _(
    grads: list[Tensor],
    params: list[Tensor],
    anchors: list[Tensor],
    importances: list[Tensor],
    scale: Tensor | None,
    strength: float,
    add: bool,
) -> Tensor:
    return importances[0].new_empty(())


@fake("linear_importance_")
def _(importance: Tensor, x: Tensor, grad_out: Tensor, weight: float, square: bool) -> None:
    return None
