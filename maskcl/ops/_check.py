"""Argument checks that the ops share; each error names the op, the argument, found and wanted.

What is right is found so by a few comparisons; what is wrong is looked at again for the sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.shards import PLAIN, is_sharded

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""What the kernels compute with."""


def dense(op: str, name: str, tensor: Any) -> None:
    """Raise TypeError unless it is an ordinary tensor: not sharded, sparse, nested, quantized."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} is a {type(tensor).__name__}, wanted a tensor")
    if is_sharded(tensor):
        raise TypeError(
            f"{op}: {name} is a DTensor, wanted an ordinary tensor: its rows here are"
            " to_local(), all of it is full_tensor(), and the modules of maskcl.nn take either"
        )
    if tensor.layout is not torch.strided or tensor.is_nested:
        found = "nested" if tensor.is_nested else tensor.layout
        raise TypeError(f"{op}: {name} is {found}, wanted a dense tensor")
    if tensor.is_quantized:
        raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted a tensor that is not quantized")


def is_floating(tensor: Any) -> bool:
    """Whether it is a dense tensor of a dtype that the kernels take."""
    return (
        isinstance(tensor, Tensor)
        and tensor.dtype in FLOATS
        and tensor.layout is torch.strided
        and not tensor.is_nested
        and not is_sharded(tensor)
    )


def are_alike(*tensors: Any) -> bool:
    """Whether all are torch's own tensors, strided, of one device and one of the kernels' dtypes.

    A cheaper question than the checks of each, which none of them can fail then. Nested tensors are
    not looked for: they have no shape.
    """
    first, strided = tensors[0], torch.strided
    if type(first) not in PLAIN or (dtype := first.dtype) not in FLOATS:
        return False
    on_cpu = first.is_cpu
    for tensor in tensors:
        if type(tensor) not in PLAIN or tensor.dtype is not dtype or tensor.is_cpu is not on_cpu:
            return False
        if tensor.layout is not strided:
            return False
    return on_cpu or all(tensor.device == first.device for tensor in tensors)


def floating(op: str, name: str, tensor: Any) -> None:
    """Raise TypeError unless ``tensor`` is a dense tensor of a dtype that the kernels take."""
    if is_floating(tensor):
        return
    dense(op, name, tensor)
    wanted = "a floating dtype"
    if tensor.is_floating_point():
        wanted = "float32, bfloat16, float16 or float64"
    raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted {wanted}")


def of_dtype(op: str, name: str, tensor: Any, dtype: torch.dtype) -> None:
    """Raise TypeError unless ``tensor`` is a dense tensor of ``dtype``."""
    dense(op, name, tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted {dtype}")


def dimensions(op: str, name: str, tensor: Tensor, wanted: int) -> None:
    """Raise ValueError unless ``tensor`` has ``wanted`` dimensions."""
    if tensor.dim() != wanted:
        raise ValueError(
            f"{op}: {name} has shape {list(tensor.shape)}, wanted {wanted} dimension(s)"
        )


def same_shape(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors have one shape."""
    if tensor.shape != other.shape:
        found, wanted = list(tensor.shape), list(other.shape)
        raise ValueError(f"{op}: {name} has shape {found}, wanted {other_name}'s, {wanted}")


def same_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise ValueError unless both tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{op}: {name} is on {tensor.device}, wanted {other_name}'s device, {other.device}"
        )


def same_dtype(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise TypeError unless both tensors have one dtype."""
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"{op}: {name} is {tensor.dtype}, wanted {other_name}'s dtype, {other.dtype}"
        )


def one_of(op: str, name: str, value: str, wanted: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is in ``wanted``."""
    if not isinstance(value, str) or value not in wanted:
        raise ValueError(f"{op}: {name} is {value!r}, wanted one of {', '.join(wanted)}")


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """What autocast makes of a linear layer's or a convolution's tensors on this one's device."""
    device = "cpu" if tensor.is_cpu else tensor.device.type
    return torch.get_autocast_dtype(device) if is_autocast(device) else None


def in_autocast(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that autocast to ``dtype`` (None: there is none) gives it: float64 stays."""
    return tensor.dtype if dtype is None or tensor.dtype is torch.float64 else dtype


def linear_arguments(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x, weight and bias in the autocast dtype where there is one, checked for a linear layer."""
    floating(op, "x", x)
    floating(op, "weight", weight)
    if weight.dim() != 2 or x.dim() < 1 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: weight has shape {list(weight.shape)}, wanted [O, I] with I the last of x's"
            f" {list(x.shape)}"
        )
    if bias is not None:
        floating(op, "bias", bias)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"{op}: bias has shape {list(bias.shape)}, wanted [{weight.shape[0]}]")
    if (dtype := autocast_dtype(x)) is not None:
        x, weight = x.to(in_autocast(x, dtype)), weight.to(in_autocast(weight, dtype))
        bias = None if bias is None else bias.to(in_autocast(bias, dtype))
    one_kind(op, x, weight, bias)
    return x, weight, bias


def one_kind(op: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise unless all are on x's device and of its dtype."""
    device, dtype = x.device, x.dtype
    if weight.device != device or weight.dtype is not dtype:
        same_device(op, "weight", weight, "x", x)
        same_dtype(op, "weight", weight, "x", x)
    if bias is not None and (bias.device != device or bias.dtype is not dtype):
        same_device(op, "bias", bias, "x", x)
        same_dtype(op, "bias", bias, "x", x)


def is_autocast(device: str) -> bool:
    """Whether autocast is on for a type of device; the meta device has none."""
    return device != "meta" and torch.is_autocast_enabled(device)
