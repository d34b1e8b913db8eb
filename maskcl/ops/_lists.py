"""Lists of tensors, a whole model's: what they are, and that what is written lies apart.

Lists are long and their op short: one cheap pass says that nothing is wrong, and only where that
cannot be said so is each tensor looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.ops import _check
from maskcl.ops._memory import overlaps_itself, share_memory
from maskcl.shards import is_sharded


def listed(op: str, name: str, value: Any) -> list[Any]:
    """The entries of an argument that must be a list, in a new one.

    Raises:
        TypeError: it is a tensor (whose rows are no list), or nothing to be gone through.
    """
    if type(value) is list:
        return value.copy()
    if isinstance(value, (Tensor, str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, wanted a list")
    return list(value)


def lengths(op: str, name: str, tensors: Sequence[Any], **lists: Sequence[Any]) -> None:
    """Raise ValueError unless every list has an entry for each of ``tensors``."""
    for other_name, entries in lists.items():
        if len(entries) != len(tensors):
            raise ValueError(
                f"{op}: {other_name} has {len(entries)} entries, wanted {name}'s {len(tensors)}"
            )


def member(op: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Raise unless ``tensor`` is floating and goes into one launch with ``first``."""
    _check.floating(op, name, tensor)
    if tensor.device != first.device:
        _check.same_device(op, name, tensor, first_name, first)
    if tensor.dtype is not first.dtype and torch.float64 in (tensor.dtype, first.dtype):
        raise TypeError(f"{op}: {name} is {tensor.dtype}, wanted no mixture with float64")


def check_like(
    op: str, name: str, tensors: Sequence[Tensor], other_name: str, others: Sequence[Tensor]
) -> None:
    """Raise unless each tensor has the shape, dtype and device of its counterpart."""
    for t, (tensor, other) in enumerate(zip(tensors, others, strict=True)):
        if (
            isinstance(tensor, Tensor)
            and tensor.dtype is other.dtype
            and tensor.layout is torch.strided
            and not tensor.is_nested
            and tensor.device == other.device
            and tensor.shape == other.shape
            and not is_sharded(tensor)
        ):
            continue
        label, other_label = f"{name}[{t}]", f"{other_name}[{t}]"
        _check.dense(op, label, tensor)
        _check.same_shape(op, label, tensor, other_label, other)
        _check.same_device(op, label, tensor, other_label, other)
        if tensor.dtype is not other.dtype:
            raise TypeError(
                f"{op}: {label} is {tensor.dtype}, wanted {other_label}'s {other.dtype}"
            )


def check_written(
    op: str, name: str, tensors: Sequence[Tensor], **read: Sequence[Tensor | None]
) -> None:
    """Raise ValueError unless each tensor may be written: all its elements lie apart from the rest.

    Args:
        op: that writes.
        name: of the list; of the tensor itself where ``tensors`` is a tuple of one.
        tensors: dense ones.
        read: what the op reads of like kind, in lists or tuples of one; None for nothing.
    """
    if torch.compiler.is_compiling():  # there is no memory yet
        _check_expanded(op, name, tensors, _is_expanded)
        return
    try:
        if not _lie_apart(tensors, read.values()):
            _check_expanded(op, name, tensors, overlaps_itself)
            _check_apart(op, name, tensors, read)
    except NotImplementedError:
        return  # the wrappers of torch.func have no memory of their own


def _lie_apart(tensors: Sequence[Tensor], read: Iterable[Sequence[Tensor | None]]) -> bool:
    """Whether nothing is expanded and every tensor has a memory of its own; False: perhaps not."""
    homes = {tensor.untyped_storage()._cdata for tensor in tensors}
    if len(homes) != len(tensors):
        return False
    for tensor in tensors:
        if not tensor.is_contiguous() and overlaps_itself(tensor):
            return False
    for entries in read:
        for entry in entries:
            if entry is not None and entry.untyped_storage()._cdata in homes:
                return False
    return True


def _is_expanded(tensor: Tensor) -> bool:
    sides = zip(tensor.stride(), tensor.shape, strict=True)
    return any(step == 0 and size > 1 for step, size in sides)


def _check_expanded(
    op: str, name: str, tensors: Sequence[Tensor], overlaps: Callable[[Tensor], bool]
) -> None:
    for t, tensor in enumerate(tensors):
        if overlaps(tensor):
            raise ValueError(
                f"{op}: {_entry(name, tensors, t)} has shape {list(tensor.shape)} and strides"
                f" {list(tensor.stride())}: elements that are written share memory, wanted a"
                " clone() of it"
            )


def _check_apart(
    op: str, name: str, tensors: Sequence[Tensor], read: Mapping[str, Sequence[Tensor | None]]
) -> None:
    by_home: dict[int, list[tuple[str, Tensor]]] = {}
    for t, tensor in enumerate(tensors):
        others = by_home.setdefault(tensor.untyped_storage()._cdata, [])
        label = _entry(name, tensors, t)
        _check_against(op, label, tensor, others)
        others.append((label, tensor))
    for other_name, entries in read.items():
        for t, entry in enumerate(entries):
            if entry is not None:
                written = by_home.get(entry.untyped_storage()._cdata, [])
                _check_against(op, _entry(other_name, entries, t), entry, written)


def _check_against(op: str, label: str, tensor: Tensor, others: list[tuple[str, Tensor]]) -> None:
    for other_label, other in others:
        if share_memory(tensor, other):
            raise ValueError(
                f"{op}: {label} shares memory with {other_label}, which is written: wanted tensors"
                " that lie apart"
            )


def _entry(name: str, tensors: Sequence[Tensor | None], index: int) -> str:
    return name if isinstance(tensors, tuple) else f"{name}[{index}]"
