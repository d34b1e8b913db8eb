"""Writes the graph anew for what stays, with smaller layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.export.flow import Flow
from maskcl.export.labels import along
from maskcl.export.layers import shrink
from maskcl.export.step import Plan
from maskcl.nn.following.operations import READOUTS, operation
from maskcl.nn.following.trace import Trace
from maskcl.nn.following.trees import mapped
from maskcl.nn.hat.plain import UnitMask

# Do nothing in evaluation mode.
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Builder:
    """The new graph while it is written.

    Args:
        trace: of the plain network, whose layers are made smaller in place.
        plan: of its channels.
        kept: which stay, bool by label.
    """

    def __init__(self, trace: Trace, plan: Plan, kept: Tensor) -> None:
        self.trace = trace
        self.plan = plan
        self.kept = kept
        self.graph = fx.Graph()
        self.new: dict[fx.Node, Any] = {}
        self.root: dict[str, Any] = {}
        floating = (p.dtype for p in trace.modules[""].parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)

    def build(self) -> fx.GraphModule:
        """The smaller network in evaluation mode."""
        self._shrink()
        for node in self.trace.graph.nodes:
            self.new[node] = self._written(node)
        self._drop_unused_sizes()
        self.graph.lint()
        model = fx.GraphModule(self.root, self.graph, type(self.trace.modules[""]).__name__)
        return model.eval()

    def create(
        self, old: fx.Node, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> fx.Node:
        """A new node named as ``old``, of arguments that name old nodes."""
        if op == "call_module":
            self.root[target] = self.trace.modules[target]
        args, kwargs = self._read(args), self._read(kwargs)
        return self.graph.create_node(op, target, args, kwargs, old.name)

    def _read(self, arguments: Any) -> Any:
        """Arguments with new nodes for old ones."""
        return mapped(arguments, fx.Node, self.new.__getitem__)

    def _written(self, node: fx.Node) -> Any:
        edit = self.plan.edits.get(node)
        if edit is not None:
            return edit(self)
        module = self.trace.called(node)
        if isinstance(module, UnitMask):
            return self._masked(node, module)
        if isinstance(module, _NOTHING):
            return self.new[node.all_input_nodes[0]]
        if operation(node) in READOUTS:
            return self._readout(node)
        if node.op == "get_attr":
            value = _attribute(self.trace.modules[""], str(node.target))
            flow = self.plan.flows[node]
            if isinstance(flow, Flow) and isinstance(value, Tensor):
                new = flow.selected(value.detach(), self.kept).clone()
                is_parameter = isinstance(value, nn.Parameter)
                value = nn.Parameter(new, value.requires_grad) if is_parameter else new
            self.root[str(node.target)] = value
        return self.create(node, node.op, node.target, node.args, dict(node.kwargs))

    def _masked(self, node: fx.Node, module: UnitMask) -> Any:
        """Nothing where all that stays is open; else a product with a constant."""
        (read,) = node.all_input_nodes
        flow = self.plan.flows[node]
        rank = len(flow.shape)
        dim = module.dim % rank
        mask = module.mask[flow.kept(self.kept, dim).to(module.mask.device)]
        if bool((mask == 1).all()):
            return self.new[read]
        name = f"{str(node.target).replace('.', '_')}_mask"
        self.root[name] = along(mask.to(self.dtype), 0, rank - dim)
        constant = self.graph.get_attr(name)
        return self.graph.call_method("mul", (self.new[read], constant))

    def _readout(self, node: fx.Node) -> Any:
        """torch_geometric's readout in torch's own operations: fx cannot look into it again."""
        names = ("x", "batch", "size")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        x, batch, size = (self._read(given.get(name)) for name in names)
        if batch is None or size is None:
            return self.create(node, node.op, node.target, node.args, dict(node.kwargs))
        channels = int(self.plan.flows[node].kept(self.kept, 1).sum())
        call = self.graph.call_method
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
        old = {new: node for node, new in self.new.items() if isinstance(new, fx.Node)}
        for node in reversed(list(self.graph.nodes)):
            source = old.get(node)
            if source is None or node.users or node.op in ("output", "placeholder"):
                continue
            reads = operation(source) in ("size", "getattr", "getitem")
            if reads and not self.trace.carries_tensor(source):
                self.graph.erase_node(node)


def _attribute(module: nn.Module, path: str) -> Any:
    value: Any = module
    for part in path.split("."):
        value = getattr(value, part)
    return value
