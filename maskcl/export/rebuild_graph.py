"""Writes the graph anew for what stays, with smaller layers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.export.channel_flow import Flow
from maskcl.export.kept_channels import along
from maskcl.export.new_graph import NewGraph
from maskcl.export.shrink_layers import shrink
from maskcl.export.traced_node import Plan
from maskcl.nn.following.operations import READOUTS, operation
from maskcl.nn.following.trace import Trace
from maskcl.nn.hat.plain import UnitMask

# Do nothing in evaluation mode.
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Builder:
    """Writes the smaller network.

    Args:
        trace: of the plain network, whose layers are made smaller in place.
        plan: of its channels.
        kept: which stay, bool by label.
    """

    def __init__(self, trace: Trace, plan: Plan, kept: Tensor) -> None:
        self.trace = trace
        self.plan = plan
        self.kept = kept
        self.new = NewGraph(trace.modules, kept)
        floating = (p.dtype for p in trace.modules[""].parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)

    def build(self) -> fx.GraphModule:
        """The smaller network in evaluation mode."""
        self._shrink()
        for node in self.trace.graph.nodes:
            self.new.values[node] = self._written(node)
        self._drop_unused_sizes()
        return self.new.module(type(self.trace.modules[""]).__name__)

    def _written(self, node: fx.Node) -> Any:
        edit = self.plan.edits.get(node)
        if edit is not None:
            return edit(self.new)
        module = self.trace.called(node)
        if isinstance(module, UnitMask):
            return self._masked(node, module)
        if isinstance(module, _NOTHING):
            return self.new.values[node.all_input_nodes[0]]
        if operation(node) in READOUTS:
            return self._readout(node)
        if node.op == "get_attr":
            self._keep_attribute(node)
        return self.new.copy(node)

    def _keep_attribute(self, node: fx.Node) -> None:
        """What stays of a parameter or buffer that the forward names by itself."""
        value = operator.attrgetter(str(node.target))(self.trace.modules[""])
        flow = self.plan.flows[node]
        if isinstance(flow, Flow) and isinstance(value, Tensor):
            new = flow.selected(value.detach(), self.kept).clone()
            is_parameter = isinstance(value, nn.Parameter)
            value = nn.Parameter(new, value.requires_grad) if is_parameter else new
        self.new.root[str(node.target)] = value

    def _masked(self, node: fx.Node, module: UnitMask) -> Any:
        """Nothing where all that stays is open; else a product with a constant."""
        (read,) = node.all_input_nodes
        flow = self.plan.flows[node]
        rank = len(flow.shape)
        dim = module.dim % rank
        mask = module.mask[flow.kept(self.kept, dim).to(module.mask.device)]
        if bool((mask == 1).all()):
            return self.new.values[read]
        name = f"{str(node.target).replace('.', '_')}_mask"
        self.new.root[name] = along(mask.to(self.dtype), 0, rank - dim)
        constant = self.new.graph.get_attr(name)
        return self.new.graph.call_method("mul", (self.new.values[read], constant))

    def _readout(self, node: fx.Node) -> Any:
        """torch_geometric's readout in torch's own operations: fx cannot look into it again."""
        names = ("x", "batch", "size")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        x, batch, size = (self.new.translated(given.get(name)) for name in names)
        if batch is None or size is None:
            return self.new.copy(node)
        channels = int(self.plan.flows[node].kept(self.kept, 1).sum())
        call = self.new.graph.call_method
        index = call("expand_as", (call("view", (batch, -1, 1)), x))
        blank = call("new_zeros", (x, (size, channels)))
        if operation(node) == "global_max_pool":
            options: dict[str, Any] = {"include_self": False}
            return call("scatter_reduce", (blank, 0, index, x, "amax"), options)
        total = call("scatter_add", (blank, 0, index, x))
        if operation(node) == "global_add_pool":
            return total
        ones = call("new_ones", (x, (call("size", (x, 0)),)))
        count = call("scatter_add", (call("new_zeros", (x, (size,))), 0, batch, ones))
        return call("div", (total, call("view", (call("clamp", (count, 1)), -1, 1))))

    def _shrink(self) -> None:
        done: set[int] = set()
        for name, (inputs, outputs) in self.plan.axes.items():
            module = self.trace.modules[name]
            if id(module) in done:
                continue
            done.add(id(module))
            out = self.kept[outputs]
            into = None if inputs is None else self.kept[inputs]
            if not bool(out.all()) or (into is not None and not bool(into.all())):
                shrink(module, into, out)

    def _drop_unused_sizes(self) -> None:
        """Sizes that are literals now."""
        graph, values = self.new.graph, self.new.values
        old = {new: node for node, new in values.items() if isinstance(new, fx.Node)}
        for node in reversed(list(graph.nodes)):
            source = old.get(node)
            if source is None or node.users or node.op in ("output", "placeholder"):
                continue
            reads = operation(source) in ("size", "getattr", "getitem")
            if reads and not self.trace.carries_tensor(source):
                graph.erase_node(node)
