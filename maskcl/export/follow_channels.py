"""Follows channels through a traced plain network, from its inputs to its outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.export.flow import Flow
from maskcl.export.layers import layer_flow, norm_flow
from maskcl.export.moves import moved
from maskcl.export.operations import by_element, operation_flow, pooled, rows, softmaxed
from maskcl.export.step import Plan, Step
from maskcl.nn.following import operations as ops
from maskcl.nn.following.operations import operation
from maskcl.nn.following.trace import Shape, Trace
from maskcl.nn.following.trees import leaves_of
from maskcl.nn.tasks.activations import keeps_zero
from maskcl.nn.tasks.graph_convolutions import is_channelwise

# Say nothing about a tensor's size.
_HARMLESS = ("dim", "ndim", "ndimension", "dtype", "device", "layout", "is_cuda", "requires_grad")
_SOFTMAX_MODULES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
_SPATIAL = ("upsample", "zeropad", "reflectionpad", "replicationpad", "circularpad", "constantpad")


def walk(trace: Trace) -> Plan:
    """What every node makes of the channels that it reads, and which must stay with which."""
    plan = Plan()
    for node in trace.graph.nodes:
        if node.op == "output":
            for flow in leaves_of([plan.flows[n] for n in node.all_input_nodes], Flow):
                for axis in flow.axes:
                    plan.labels.pin(axis)
        else:
            plan.flows[node] = _Walker(trace, plan, node).flow()
    axes = {id(a): a for f in leaves_of(plan.flows, Flow) for a in f.axes if a is not None}
    for axis in axes.values():
        plan.labels.at_least_one(axis)
    return plan


class _Walker:
    def __init__(self, trace: Trace, plan: Plan, node: fx.Node) -> None:
        name = operation(node) if trace.called(node) is None else ""
        self.step = Step(trace, node, name, plan)
        self.trace = trace
        self.node = node

    def flow(self) -> Any:
        step = self.step
        if self.node.op == "placeholder":
            return step.wholes()
        if self.node.op == "get_attr":
            return self._constant()
        self._check_sizes()
        if not self.trace.carries_tensor(self.node):
            return self._number()
        if not any(flow.is_labelled for flow in step.flows) and not self._has_weights():
            return step.wholes()
        found = self._module() if step.module is not None else self._operation()
        if found is None or not self._fits(found):
            step.plan.edits.pop(self.node, None)
            step.plan.checks.pop(self.node, None)
            return step.wholes()
        return found

    def _has_weights(self) -> bool:
        """Whether a module may begin channels of its own; all others only pass them on."""
        return self.step.module is not None and any(True for _ in self.step.module.parameters())

    def _module(self) -> Any:
        step, module = self.step, self.step.module
        assert module is not None
        if not step.flows or _has_hooks(module):
            return None
        if is_channelwise(module):
            return rows(step)
        found = layer_flow(step) or norm_flow(step)
        if found is not None or len(step.flows) != 1:
            return found
        kind = type(module).__name__
        if isinstance(module, ops.MOVING_MODULES):
            return moved(step)
        if isinstance(module, _SOFTMAX_MODULES):
            return softmaxed(step, module.dim) if isinstance(module.dim, int) else None
        if kind.endswith(("Pool1d", "Pool2d", "Pool3d")) or kind.lower().startswith(_SPATIAL):
            zero_stays = not kind.startswith("ConstantPad")
            return pooled(step) if zero_stays else None
        keeps = keeps_zero(module)
        return None if keeps is None else by_element(step, keeps)

    def _operation(self) -> Any:
        step, name = self.step, self.step.name
        first = step.args[0] if step.args else None
        if name == "getitem" and isinstance(first, tuple):
            return first[step.args[1]]
        if name in ops.READOUTS or (name in ops.PICKS and self._picks_rows()):
            return rows(step)
        if name in ("cat", "concat", "concatenate"):
            return operation_flow(step)
        if name in ops.MOVES or (name == "getattr" and step.args[1] in ("T", "mT", "data")):
            return moved(step) if len(list(leaves_of(first, Flow))) == len(step.flows) else None
        return operation_flow(step)

    def _picks_rows(self) -> bool:
        index = self.step.args[-1]
        return isinstance(index, Flow) and self.step.args[1:-1] in ((), (0,))

    def _constant(self) -> Any:
        """A parameter or buffer by itself: cut to size as its readers need it."""
        value = _attribute(self.trace.modules[""], str(self.node.target))
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return self.step.wholes()
        labels = self.step.labels
        axes = tuple(labels.fresh(size) if size > 1 else None for size in value.shape)
        return Flow(tuple(value.shape), axes, value.detach().eq(0).cpu())

    def _check_sizes(self) -> None:
        """A size read as a whole must not change unless it is taken apart."""
        for read in self.node.all_input_nodes:
            flow = self._sized(read)
            if flow is None or not flow.is_labelled:
                continue
            index = self.node.args[1] if self.step.name == "getitem" else slice(None)
            if not isinstance(index, (int, slice)):
                index = slice(None)
            dims = range(len(flow.shape))[index]
            if isinstance(dims, range):
                self.step.pin(flow, dims)
            elif flow.axes[dims] is not None:
                self._literal(flow.shape[dims])

    def _sized(self, node: fx.Node) -> Flow | None:
        """The Flow whose whole size a node is."""
        is_size = isinstance(self.trace.results[node], torch.Size)
        read = node.args[0] if node.args else None
        flow = self.step.plan.flows.get(read) if is_size and isinstance(read, fx.Node) else None
        return flow if isinstance(flow, Flow) else None

    def _number(self) -> Any:
        """A result without tensors: sizes stand for the full network's, all else pins."""
        step = self.step
        for flow in step.flows:
            is_whole_size = isinstance(step.result, torch.Size) and len(step.flows) == 1
            if step.name in _HARMLESS or not flow.is_labelled or is_whole_size:
                continue
            if step.name == "getattr" and step.args[1] in _HARMLESS:
                continue
            dim = step.argument(1, "dim")
            if step.name == "size" and isinstance(dim, int):
                if flow.axes[dim] is not None:
                    self._literal(flow.shape[dim])
            else:
                step.pin(flow)
        return step.result

    def _literal(self, value: int) -> None:
        self.step.plan.edits[self.node] = lambda builder: value

    def _fits(self, found: Any) -> bool:
        if isinstance(found, Flow):
            return isinstance(self.step.result, Shape) and found.shape == self.step.result.size
        shapes = [s.size for s in self.step.result] if isinstance(self.step.result, tuple) else []
        return [flow.shape for flow in leaves_of(found, Flow)] == shapes


def _has_hooks(module: nn.Module) -> bool:
    """Whether something may change what goes into a module or comes out of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
