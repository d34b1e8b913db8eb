"""Operations that move, repeat or drop elements: reshapes, transposes, slices, splits, stacks.

What an operation does to channels needs no rule of its own: it is run on the labels of its input's
elements. Whether it can stay as it is where channels are missing is tried in the same way, on the
elements' numbers: the operation on what stays of the input must give what stays of the output. If
it does not, it is tried with the sizes and positions in its arguments put right, and if that does
not help either, all channels stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.export.channel_flow import Flow
from maskcl.export.channel_rules.reshape_and_slice_arguments import WRITERS, written_sizes
from maskcl.export.kept_channels import EVERY, along
from maskcl.export.new_graph import NewGraph
from maskcl.export.traced_node import TracedNode
from maskcl.nn.following.provenance import compact as squeezed
from maskcl.nn.following.trees import leaves_of, mapped


@dataclass(frozen=True)
class Call:
    """A node's operation with other arguments; fx nodes among them stand for their values."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, module: nn.Module | None, values: dict[fx.Node, Any]) -> Any:
        """What it returns on those values."""
        args, kwargs = mapped((self.args, self.kwargs), fx.Node, values.__getitem__)
        if self.op == "call_module":
            assert module is not None
            return module(*args, **kwargs)
        if self.op == "call_method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)


def moved(traced: TracedNode) -> Any:
    """Flows of the result; None where the operation cannot be run on labels."""
    move = _Move(traced)
    try:
        found = move.follow()
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if found is None:
        return None
    outputs = list(leaves_of(found, Flow))
    traced.plan.checks[traced.node] = lambda kept: move.call_for(kept, outputs) is not None

    def edit(new: NewGraph) -> Any:
        call = move.call_for(new.kept, outputs)
        assert call is not None
        return new.create(traced.node, call.op, call.target, call.args, call.kwargs)

    traced.plan.edits[traced.node] = edit
    return found


class _Move:
    def __init__(self, traced: TracedNode) -> None:
        self.traced = traced
        node = traced.node
        self.call = Call(node.op, node.target, node.args, dict(node.kwargs))
        self.inputs = {n: traced.plan.flows[n] for n in node.all_input_nodes}
        self.moving = {n: flow for n, flow in self.inputs.items() if isinstance(flow, Flow)}
        self.plain = {n: v for n, v in self.inputs.items() if n not in self.moving}

    def run(self, call: Call, tensors: dict[fx.Node, Tensor]) -> Any:
        return call.run(self.traced.module, {**self.plain, **tensors})

    def follow(self) -> Any:
        """Run it on the labels, and on which elements are 0."""
        encoded = {}
        for node, flow in self.moving.items():
            zero = flow.zero.expand(flow.shape)
            encoded[node] = _elements(self.traced, flow) * 2 + zero
        out = self.run(self.call, encoded)
        rows = self.run(self.call, {n: _samples(f).contiguous() for n, f in self.moving.items()})
        if isinstance(out, Tensor):
            return self._flow(out, rows)
        flows = [self._flow(o, r) for o, r in zip(out, rows, strict=True)]
        return None if any(flow is None for flow in flows) else tuple(flows)

    def _flow(self, out: Tensor, rows: Tensor) -> Flow | None:
        """The Flow of one result from what its elements carry."""
        elements, zero = squeezed(out >> 1), squeezed(out & 1).bool()
        varied = [dim for dim, size in enumerate(elements.shape) if size > 1]
        samples = squeezed(rows)
        if any(samples.shape[dim] > 1 for dim in varied):
            return None  # samples and channels in one dimension: its size depends on both
        axes: list[Tensor | None] = [None] * out.dim()
        labels = self.traced.labels
        if not varied:
            label = elements.flatten()
            if label.numel() and int(label[0]) != EVERY:
                labels.pin(label[:1])
        elif len(varied) == 1:
            axes[varied[0]] = elements.flatten()
        else:
            grid = {dim: labels.fresh(elements.shape[dim]) for dim in varied}
            for dim, axis in grid.items():
                axes[dim] = axis
            labels.grid(elements, grid)
        return Flow(tuple(out.shape), tuple(axes), zero)

    def call_for(self, kept: Tensor, outputs: list[Flow]) -> Call | None:
        """The operation as it has to be written where only ``kept`` stays."""
        if all(bool(kept[a].all()) for f in (*self.moving.values(), *outputs) for a in _axes(f)):
            return self.call
        numbers, start = {}, 0
        for node, flow in self.moving.items():
            stop = start + _numel(flow.shape)
            numbers[node] = torch.arange(start, stop).view(flow.shape)
            start = stop
        wanted = _tensors(self.run(self.call, numbers))
        wanted = [f.selected(t, kept) for f, t in zip(outputs, wanted, strict=True)]
        given = {n: flow.selected(numbers[n], kept) for n, flow in self.moving.items()}
        for call in self._candidates(kept, outputs):
            try:
                found = _tensors(self.run(call, given))
            except (RuntimeError, TypeError, ValueError, IndexError):
                continue
            if len(found) == len(wanted) and all(map(torch.equal, found, wanted)):
                return call
        return None

    def _candidates(self, kept: Tensor, outputs: list[Flow]) -> Iterator[Call]:
        yield self.call
        name, node = self.traced.name, self.traced.node
        if isinstance(self.traced.module, nn.Unflatten):
            flow = self.traced.args[0]
            sizes = self.traced.module.unflattened_size
            dim = int(self.traced.module.dim) % len(flow.shape)  # type: ignore[arg-type]
            new = written_sizes(outputs[0], kept, list(sizes), dim)
            yield Call("call_method", "unflatten", (node.args[0], dim, new), {})
        writer = WRITERS.get(name)
        if writer is None or not node.args or node.args[0] not in self.moving:
            return
        args = writer(node, self.moving[node.args[0]], outputs, kept)  # type: ignore[index]
        if args is not None:
            if name in ("chunk", "tensor_split", "split"):
                yield Call("call_function", torch.split, args, {})
            else:
                yield replace(self.call, args=args, kwargs={})


def _elements(traced: TracedNode, flow: Flow) -> Tensor:
    """The label of each element, int64 of the flow's shape."""
    rank = len(flow.shape)
    axes = {dim: axis for dim, axis in enumerate(flow.axes) if axis is not None}
    if len(axes) <= 1:
        labels = torch.full((1,) * rank, EVERY)
        for dim, axis in axes.items():
            labels = along(axis, dim, rank)
    else:
        sizes = [flow.shape[dim] if dim in axes else 1 for dim in range(rank)]
        labels = traced.labels.fresh(_numel(sizes)).view(sizes)
        traced.labels.grid(labels, axes)
    return labels.expand(flow.shape)


def _samples(flow: Flow) -> Tensor:
    """The sample that each element is of, where the first dimension is one of samples."""
    rank = len(flow.shape)
    if rank == 0 or flow.axes[0] is not None:
        return torch.zeros((1,) * rank, dtype=torch.int64).expand(flow.shape)
    return along(torch.arange(flow.shape[0]), 0, rank).expand(flow.shape)


def _axes(flow: Flow) -> list[Tensor]:
    return [axis for axis in flow.axes if axis is not None]


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _numel(shape: Any) -> int:
    return torch.Size(shape).numel()
