"""The compact network's graph while it is written: nodes, and the modules and tensors they name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from maskcl.nn.following.trees import mapped


class NewGraph:
    """A graph that stands for another one, node by node.

    Args:
        modules: those of the old graph by name.
        kept: which channels stay, bool by label.

    Attributes:
        graph: what is written so far.
        values: what stands for each old node: a new node, or a number.
        root: modules and tensors by the names that new nodes have for them.
        kept: as given.
    """

    def __init__(self, modules: Mapping[str, nn.Module], kept: Tensor) -> None:
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.root: dict[str, Any] = {}
        self.kept = kept
        self._modules = modules

    def create(
        self, old: fx.Node, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> fx.Node:
        """A new node named as ``old``, of arguments that name old nodes."""
        if op == "call_module":
            self.root[target] = self._modules[target]
        args, kwargs = self.translated(args), self.translated(kwargs)
        return self.graph.create_node(op, target, args, kwargs, old.name)

    def copy(self, old: fx.Node) -> fx.Node:
        """The same node, of what stands for its arguments."""
        return self.create(old, old.op, old.target, old.args, dict(old.kwargs))

    def translated(self, arguments: Any) -> Any:
        """Arguments with what stands for old nodes in their places."""
        return mapped(arguments, fx.Node, self.values.__getitem__)

    def module(self, name: str) -> fx.GraphModule:
        """What is written as a module in evaluation mode whose class has that name."""
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph, name).eval()
