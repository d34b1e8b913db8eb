"""A node of a traced network with what it reads, and the plan to which its rule adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn

from maskcl.export.channel_flow import Flow, whole
from maskcl.export.kept_channels import Labels
from maskcl.export.new_graph import NewGraph
from maskcl.nn.following.provenance import aligned
from maskcl.nn.following.trace import Shape, Trace
from maskcl.nn.following.trees import leaves_of, mapped

# Puts a node into the new graph; returns what stands for it there.
Edit = Callable[[NewGraph], Any]


@dataclass
class Plan:
    """What `follow_channels` finds in a graph.

    Attributes:
        labels: with the rules of all nodes.
        flows: each node's result, a Shape replaced by a Flow.
        edits: how nodes are written that cannot be copied as they are.
        checks: by node that moves elements: whether it can be written for what stays.
        axes: of layers that were called: the labels of their inputs and outputs; a norm has the
            latter alone.
    """

    labels: Labels = field(default_factory=Labels)
    flows: dict[fx.Node, Any] = field(default_factory=dict)
    edits: dict[fx.Node, Edit] = field(default_factory=dict)
    checks: dict[fx.Node, Callable[[Tensor], bool]] = field(default_factory=dict)
    axes: dict[str, tuple[Tensor | None, Tensor]] = field(default_factory=dict)


class TracedNode:
    """A node, its arguments with Flows for tensors, and its recorded result.

    Args:
        trace: of the network.
        node: whose arguments are in ``plan.flows`` already.
        name: of the operation that it calls, as ``operation`` gives it; empty for a module.
        plan: gains what the node's rule finds.

    Attributes:
        result: as the trace recorded it.
        args, kwargs: with Flows for tensors.
        flows: all of these.
    """

    def __init__(self, trace: Trace, node: fx.Node, name: str, plan: Plan) -> None:
        self.trace = trace
        self.node = node
        self.name = name
        self.plan = plan
        self.labels = plan.labels
        self.result = trace.results[node]
        self.args = mapped(node.args, fx.Node, plan.flows.__getitem__)
        self.kwargs = mapped(node.kwargs, fx.Node, plan.flows.__getitem__)
        self.flows = list(leaves_of((self.args, self.kwargs), Flow))

    @property
    def module(self) -> nn.Module | None:
        """The module that the node calls."""
        return self.trace.called(self.node)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The result's, where that is one tensor."""
        return self.result.size if isinstance(self.result, Shape) else None

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    def pin(self, flow: Flow, dims: Sequence[int] | None = None) -> None:
        """All channels along the dimensions (of all) stay."""
        for dim in range(len(flow.shape)) if dims is None else dims:
            self.labels.pin(flow.axes[dim])

    def wholes(self) -> Any:
        """The result with nothing known; all that it reads stays too."""
        for flow in self.flows:
            self.pin(flow)
        return mapped(self.result, Shape, lambda shape: whole(shape.size))

    def joined_axes(self, flows: Sequence[Flow], dims: Sequence[int]) -> list[Tensor | None]:
        """Axes of tensors that broadcast to the result: along each of ``dims`` the same channels.

        Dimensions are the result's; others come out as None.
        """
        assert self.shape is not None
        rank = len(self.shape)
        axes: list[Tensor | None] = [None] * rank
        for dim in dims:
            found = []
            for flow in flows:
                own = dim - (rank - len(flow.shape))
                if own >= 0 and flow.shape[own] == self.shape[dim]:
                    found.append(flow.axes[own])
            labelled = [axis for axis in found if axis is not None]
            if labelled:
                axes[dim] = labelled[0]
                for axis in found:
                    self.labels.same(labelled[0], axis)
        return axes

    def elementwise(self, flows: Sequence[Flow], zero: Tensor) -> Flow:
        """The result of an operation by element on tensors that broadcast."""
        assert self.shape is not None
        axes = self.joined_axes(flows, range(len(self.shape)))
        return Flow(self.shape, tuple(axes), aligned(zero, len(self.shape)))
