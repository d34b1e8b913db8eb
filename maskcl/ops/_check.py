"""Argument checks that the ops share; each error names the op, the argument, found and wanted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def floating(op: str, name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} is a {type(tensor).__name__}, wanted a tensor")
    if not tensor.is_floating_point():
        raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted a floating dtype")


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


def one_of(op: str, name: str, value: str, wanted: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is in ``wanted``."""
    if value not in wanted:
        raise ValueError(f"{op}: {name} is {value!r}, wanted one of {', '.join(wanted)}")


def lengths(op: str, name: str, tensors: Sequence[Tensor], **lists: Sequence[object]) -> None:
    """Raise ValueError unless every list has an entry for each of ``tensors``."""
    for other_name, entries in lists.items():
        if len(entries) != len(tensors):
            raise ValueError(
                f"{op}: {other_name} has {len(entries)} entries, wanted {name}'s {len(tensors)}"
            )


def member(op: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Raise unless ``tensor`` is floating and goes into one launch with ``first``."""
    floating(op, name, tensor)
    if tensor.device != first.device:
        same_device(op, name, tensor, first_name, first)
    if tensor.dtype != first.dtype and torch.float64 in (tensor.dtype, first.dtype):
        raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted no mixture with float64")


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
    if bias is not None and bias.shape != (weight.shape[0],):
        raise ValueError(f"{op}: bias has shape {list(bias.shape)}, wanted [{weight.shape[0]}]")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        same_device(op, name, tensor, "x", x)
        if tensor.dtype != x.dtype:
            raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted x's dtype, {x.dtype}")
    return x, weight, bias
