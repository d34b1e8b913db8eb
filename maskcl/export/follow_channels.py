"""Follows channels through a traced plain network, from its inputs to its outputs."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from maskcl.export.channel_flow import Flow
from maskcl.export.channel_rules.choose_rule import module_flow, operation_flow
from maskcl.export.traced_node import Plan, TracedNode
from maskcl.nn.following.operations import operation
from maskcl.nn.following.trace import Shape, Trace
from maskcl.nn.following.trees import leaves_of

# Say nothing about a tensor's size.
_HARMLESS = ("dim", "ndim", "ndimension", "dtype", "device", "layout", "is_cuda", "requires_grad")


def follow_channels(trace: Trace) -> Plan:
    """What every node makes of the channels that it reads, and which must stay with which."""
    plan = Plan()
    for node in trace.graph.nodes:
        if node.op == "output":
            for flow in leaves_of([plan.flows[n] for n in node.all_input_nodes], Flow):
                for axis in flow.axes:
                    plan.labels.pin(axis)
        else:
            plan.flows[node] = _Follower(trace, plan, node).flow()
    axes = {id(a): a for f in leaves_of(plan.flows, Flow) for a in f.axes if a is not None}
    for axis in axes.values():
        plan.labels.at_least_one(axis)
    return plan


class _Follower:
    """One node: the Flow of its result, and which sizes it reads."""

    def __init__(self, trace: Trace, plan: Plan, node: fx.Node) -> None:
        name = operation(node) if trace.called(node) is None else ""
        self.traced = TracedNode(trace, node, name, plan)
        self.trace = trace
        self.node = node

    def flow(self) -> Any:
        traced = self.traced
        if self.node.op == "placeholder":
            return traced.wholes()
        if self.node.op == "get_attr":
            return self._constant()
        self._check_sizes()
        if not self.trace.carries_tensor(self.node):
            return self._number()
        if not any(flow.is_labelled for flow in traced.flows) and not self._has_weights():
            return traced.wholes()
        found = operation_flow(traced) if traced.module is None else module_flow(traced)
        if found is None or not self._fits(found):
            traced.plan.edits.pop(self.node, None)
            traced.plan.checks.pop(self.node, None)
            return traced.wholes()
        return found

    def _has_weights(self) -> bool:
        """Whether a module may begin channels of its own; all others only pass them on."""
        return self.traced.module is not None and any(True for _ in self.traced.module.parameters())

    def _constant(self) -> Any:
        """A parameter or buffer by itself: cut to size as its readers need it."""
        value = operator.attrgetter(str(self.node.target))(self.trace.modules[""])
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return self.traced.wholes()
        labels = self.traced.labels
        axes = tuple(labels.fresh(size) if size > 1 else None for size in value.shape)
        return Flow(tuple(value.shape), axes, value.detach().eq(0).cpu())

    def _check_sizes(self) -> None:
        """A size read as a whole must not change unless it is taken apart."""
        for read in self.node.all_input_nodes:
            flow = self._sized(read)
            if flow is None or not flow.is_labelled:
                continue
            index = self.node.args[1] if self.traced.name == "getitem" else slice(None)
            if not isinstance(index, (int, slice)):
                index = slice(None)
            dims = range(len(flow.shape))[index]
            if isinstance(dims, range):
                self.traced.pin(flow, dims)
            elif flow.axes[dims] is not None:
                self._literal(flow.shape[dims])

    def _sized(self, node: fx.Node) -> Flow | None:
        """The Flow whose whole size a node is."""
        is_size = isinstance(self.trace.results[node], torch.Size)
        read = node.args[0] if node.args else None
        flow = self.traced.plan.flows.get(read) if is_size and isinstance(read, fx.Node) else None
        return flow if isinstance(flow, Flow) else None

    def _number(self) -> Any:
        """A result without tensors: sizes stand for the full network's, all else pins."""
        traced = self.traced
        for flow in traced.flows:
            is_whole_size = isinstance(traced.result, torch.Size) and len(traced.flows) == 1
            if traced.name in _HARMLESS or not flow.is_labelled or is_whole_size:
                continue
            if traced.name == "getattr" and traced.args[1] in _HARMLESS:
                continue
            dim = traced.argument(1, "dim")
            if traced.name == "size" and isinstance(dim, int):
                if flow.axes[dim] is not None:
                    self._literal(flow.shape[dim])
            else:
                traced.pin(flow)
        return traced.result

    def _literal(self, value: int) -> None:
        self.traced.plan.edits[self.node] = lambda new: value

    def _fits(self, found: Any) -> bool:
        result = self.traced.result
        if isinstance(found, Flow):
            return isinstance(result, Shape) and found.shape == result.size
        shapes = [s.size for s in result] if isinstance(result, tuple) else []
        return [flow.shape for flow in leaves_of(found, Flow)] == shapes
