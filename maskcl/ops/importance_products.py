"""Importances of a linear layer's weights, exact over samples, as one product of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl import backends
from maskcl.grad_mode import without_gradients
from maskcl.ops import _check
from maskcl.ops._lists import check_written
from maskcl.ops._numbers import number
from maskcl.ops.importance import check_importance
from maskcl.schemas import fake


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


@without_gradients
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
    check_importance(op, "importance", importance, "x", x)
    wanted = [grad_out.shape[-1], x.shape[-1]]
    if list(importance.shape) != wanted:
        raise ValueError(f"{op}: importance has shape {list(importance.shape)}, wanted {wanted}")
    weight = number(op, "weight", weight, torch.float32)
    check_written(op, "importance", (importance,), x=(x,), grad_out=(grad_out,))
    backends.select(op, x)(importance, x, grad_out, weight, bool(square))


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


@fake("linear_importance_")
def _(importance: Tensor, x: Tensor, grad_out: Tensor, weight: float, square: bool) -> None:
    return None
