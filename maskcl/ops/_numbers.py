"""Numbers that the ops take: Python's, numpy's and tensors of no dimension, each checked by name.

Checks are comparisons, which ``torch.compile`` traces for numbers that change between calls;
``math.isfinite`` it cannot.
"""

from __future__ import annotations

import operator
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Number = float | Tensor
"""A Python or numpy number, or a 0-d tensor."""
_LARGEST = 1.7976931348623157e308
_LARGEST32 = 3.4028234663852886e38


def number(op: str, name: str, value: Any, dtype: torch.dtype = torch.float64) -> float:
    """``value`` as a float.

    Args:
        op: whose argument it is.
        name: of the argument.
        value: a number of Python's or numpy's, or a 0-d tensor, which is read (and waited for).
        dtype: that it is computed in; all but float64 are computed in float32.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or not in this dtype.
    """
    if type(value) is not float and type(value) is not int:
        value = _plain(op, name, value)
    most = _LARGEST if dtype is torch.float64 else _LARGEST32
    if -most <= value <= most:
        return float(value)
    wanted = "a finite number" if not -_LARGEST <= value <= _LARGEST else "one that float32 holds"
    raise ValueError(f"{op}: {name} is {value!r}, wanted {wanted}")


def integer(
    op: str, name: str, value: Any, least: int | None = None, most: int | None = None
) -> int:
    """``value`` as an int, from ``least`` to ``most`` where they are given.

    Raises:
        TypeError: it is no integer of Python's, numpy's or a tensor's.
        ValueError: it is out of range.
    """
    if type(value) is not int:
        try:
            value = operator.index(value)
        except TypeError:
            raise TypeError(f"{op}: {name} is {described(value)}, wanted an int") from None
    if (least is not None and value < least) or (most is not None and value > most):
        wanted = f"an int of at least {least}" if most is None else f"an int from {least} to {most}"
        raise ValueError(f"{op}: {name} is {value}, wanted {wanted}")
    return value


def changes(value: Number) -> bool:
    """Whether a number is a tensor, or one that the graph that is being traced has as an input."""
    if isinstance(value, (Tensor, torch.SymFloat)):
        return True
    from torch.fx.experimental.symbolic_shapes import has_static_value

    return type(value) in (float, int) and not has_static_value(value)


def in_graph(op: str, name: str, value: Number, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a 0-d tensor that a graph computes: ``torch.full`` would make it a constant.

    Raises:
        TypeError, ValueError: it is no tensor and not finite, or a tensor and not 0-d.
    """
    if not isinstance(value, Tensor):
        return torch.zeros((), dtype=dtype, device=device) + number(op, name, value)
    if value.dim() != 0:
        raise ValueError(f"{op}: {name} is {described(value)}, wanted a number or a 0-d tensor")
    return value.detach().to(dtype)


def described(value: Any) -> str:
    """What an error says that it found in place of a number."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype} {list(value.shape)} on {value.device}"
    return f"{value!r}"


def _plain(op: str, name: str, value: Any) -> Any:
    """The number that ``value`` stands for, as Python or numpy has it."""
    if isinstance(value, Real):
        return value
    if getattr(value, "ndim", None) == 0 and not getattr(value, "is_meta", False):
        found = value.item()
        if isinstance(found, Real):
            return found
    raise TypeError(f"{op}: {name} is {described(value)}, wanted a number")
