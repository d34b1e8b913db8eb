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
from maskcl.grad_mode import without_gradients
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops._lists import check_like, check_written, lengths, listed, member
from maskcl.ops._numbers import number
from maskcl.schemas import fake
from maskcl.shards import is_sharded

Tensors = Sequence[Tensor]


@without_gradients
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
        decay: of what is there, at least 0: below 1 for online EWC (Schwarz et al. 2018, eq. 8).
        square: g^2 for |g|: Fisher information (Kirkpatrick et al. 2017).

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "mas_accumulate_"
    importances, grads = listed(op, "importances", importances), listed(op, "grads", grads)
    lengths(op, "importances", importances, grads=grads)
    weight = number(op, "weight", weight, torch.float32)
    decay = number(op, "decay", decay, torch.float32)
    if decay < 0:
        raise ValueError(f"{op}: decay is {decay}, wanted a number of at least 0")
    if not _fit(importances, grads):
        for t, (omega, grad) in enumerate(zip(importances, grads, strict=True)):
            _check.floating(op, "importances[0]", importances[0])
            member(op, f"grads[{t}]", grad, "importances[0]", importances[0])
            check_importance(op, f"importances[{t}]", omega, f"grads[{t}]", grad)
            if grad.shape not in (omega.shape, (*grad.shape[:1], *omega.shape)):
                raise ValueError(
                    f"{op}: grads[{t}] has shape {list(grad.shape)}, wanted importances[{t}]'s,"
                    f" {list(omega.shape)}, or that with samples in front"
                )
    check_written(op, "importances", importances, grads=grads)
    if importances:
        run = backends.select(op, grads[0])
        run(importances, grads, weight, decay, bool(square))


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
    op = "mas_penalty"
    params, anchors = listed(op, "params", params), listed(op, "anchors", anchors)
    importances = listed(op, "importances", importances)
    _check_penalty(op, params, importances, anchors=anchors)
    if not params:
        return torch.zeros(())
    return call(MasPenaltyFunction, len(params), *params, *anchors, *importances)


@without_gradients
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
    grads, params = listed(op, "grads", grads), listed(op, "params", params)
    anchors, importances = listed(op, "anchors", anchors), listed(op, "importances", importances)
    strength = number(op, "strength", strength, torch.float32)
    _check_penalty(op, params, importances, anchors=anchors, grads=grads)
    check_written(op, "grads", grads, params=params, anchors=anchors, importances=importances)
    if not params:
        return torch.zeros(())
    run = backends.select(op, params[0])
    return run(grads, params, anchors, importances, None, strength, True) * strength


class MasPenaltyFunction(OpFunction):
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


_WIDE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def _fit(importances: list[Tensor], *others: list[Tensor]) -> bool:
    """Whether nothing is wrong with any entry, asked briefly: lists are long and their op short.

    What does not fit so, such as samples in front, is looked at once more, argument by argument.
    """
    if not importances:
        return True
    try:
        device, wide = importances[0].device, importances[0].dtype
        entries = [(t.dtype, omega.shape) for t, omega in zip(others[0], importances, strict=True)]
        for omega in importances:
            if omega.dtype is not wide or omega.layout is not torch.strided:
                return False
            if omega.device != device or is_sharded(omega):
                return False
        for dtype, _ in entries:
            if _WIDE.get(dtype) is not wide:
                return False
        for tensors in others:
            for tensor, (dtype, shape) in zip(tensors, entries, strict=True):
                if tensor.dtype is not dtype or tensor.layout is not torch.strided:
                    return False
                if tensor.device != device or tensor.shape != shape or is_sharded(tensor):
                    return False
    except (AttributeError, RuntimeError):  # one is no tensor, or a nested one
        return False
    return True


def check_importance(op: str, name: str, omega: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless ``omega`` is in the dtype that sums of ``other`` have, on its device."""
    _check.floating(op, name, omega)
    wanted = torch.float64 if other.dtype == torch.float64 else torch.float32
    if omega.dtype != wanted:
        raise TypeError(f"{op}: {name} is {omega.dtype}, wanted {wanted} for {other_name}")
    _check.same_device(op, name, omega, other_name, other)


def _check_penalty(
    op: str, params: list[Tensor], importances: list[Tensor], **others: list[Tensor]
) -> None:
    """Raise unless params, importances and ``others``, each like params, fit each other."""
    lengths(op, "params", params, importances=importances, **others)
    if _fit(importances, params, *others.values()):
        return
    for t, (param, omega) in enumerate(zip(params, importances, strict=True)):
        _check.floating(op, "params[0]", params[0])
        member(op, f"params[{t}]", param, "params[0]", params[0])
        check_importance(op, f"importances[{t}]", omega, f"params[{t}]", param)
        _check.same_shape(op, f"importances[{t}]", omega, f"params[{t}]", param)
    for name, entries in others.items():
        check_like(op, name, entries, "params", params)


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
