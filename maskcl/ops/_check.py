"""Argument checks that the ops share; each error names the op, the argument, found and wanted."""

from __future__ import annotations

from collections.abc import Sequence

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
