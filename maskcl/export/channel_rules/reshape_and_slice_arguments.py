"""Arguments of reshapes, slices and splits, put right for what stays of their tensors.

Each function takes the node, the Flow that it reads, those of its results, and what stays by label;
it returns the node's arguments, or None where it cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from maskcl.export.channel_flow import Flow


def _view(node: fx.Node, flow: Flow, outputs: list[Flow], kept: Tensor) -> tuple[Any, ...] | None:
    """Arguments of view, reshape and expand with the sizes of what stays."""
    sizes = node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size")),)
    nested = len(sizes) == 1 and isinstance(sizes[0], (tuple, list))
    new = written_sizes(outputs[0], kept, list(sizes[0] if nested else sizes), 0)  # type: ignore[arg-type]
    if new is None:
        return None
    return (node.args[0], tuple(new)) if nested else (node.args[0], *new)


def _unflatten(
    node: fx.Node, flow: Flow, outputs: list[Flow], kept: Tensor
) -> tuple[Any, ...] | None:
    dim, sizes = (*node.args[1:], *node.kwargs.values())
    if not isinstance(dim, int) or not isinstance(sizes, (tuple, list)):
        return None
    new = written_sizes(outputs[0], kept, list(sizes), dim % len(flow.shape))
    return None if new is None else (node.args[0], dim, tuple(new))


def written_sizes(flow: Flow, kept: Tensor, sizes: list[Any], first: int) -> list[Any] | None:
    """Sizes written for dimensions from ``first`` on, those with channels put right."""
    if first + len(sizes) > len(flow.shape):
        return None
    return [
        size
        if flow.axes[first + i] is None or (isinstance(size, int) and size == -1)
        else int(flow.kept(kept, first + i).sum())
        for i, size in enumerate(sizes)
    ]


def _split(node: fx.Node, flow: Flow, outputs: list[Flow], kept: Tensor) -> tuple[Any, ...] | None:
    dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
    if not isinstance(dim, int):
        return None
    return node.args[0], [int(out.kept(kept, dim).sum()) for out in outputs], dim


def _index(node: fx.Node, flow: Flow, outputs: list[Flow], kept: Tensor) -> tuple[Any, ...] | None:
    index: Any = node.args[1]
    items = index if isinstance(index, tuple) else (index,)
    real = sum(item is not None and item is not Ellipsis for item in items)
    new, dim = [], 0
    for item in items:
        if item is Ellipsis:
            dim += len(flow.shape) - real
        elif item is not None:
            item = _position(item, flow, dim, kept)
            dim += 1
        new.append(item)
    return node.args[0], tuple(new) if isinstance(index, tuple) else new[0]


def _position(item: Any, flow: Flow, dim: int, kept: Tensor) -> Any:
    """An int or a slice with step 1, counted in what stays."""
    if flow.axes[dim] is None:
        return item
    before = [0, *flow.kept(kept, dim).cumsum(0).tolist()]
    if isinstance(item, int):
        return before[item % flow.shape[dim]]
    if isinstance(item, slice):
        parts = (item.start, item.stop, item.step)
        if all(part is None or isinstance(part, int) for part in parts):
            start, stop, step = item.indices(flow.shape[dim])
            return slice(before[start], before[stop]) if step == 1 else item
    return item


def _narrow(node: fx.Node, flow: Flow, outputs: list[Flow], kept: Tensor) -> tuple[Any, ...] | None:
    values: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if len(values) != 3 or not all(isinstance(value, int) for value in values):
        return None
    dim, start, length = values
    part = _position(slice(start, start + length), flow, dim, kept)
    return node.args[0], dim, part.start, part.stop - part.start


def _select(node: fx.Node, flow: Flow, outputs: list[Flow], kept: Tensor) -> tuple[Any, ...] | None:
    values: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if len(values) != 2 or not all(isinstance(value, int) for value in values):
        return None
    dim, index = values
    return node.args[0], dim, _position(index, flow, dim, kept)


WRITERS: dict[str, Callable[..., tuple[Any, ...] | None]] = {
    "view": _view,
    "reshape": _view,
    "expand": _view,
    "unflatten": _unflatten,
    "chunk": _split,
    "tensor_split": _split,
    "split": _split,
    "getitem": _index,
    "narrow": _narrow,
    "select": _select,
}
