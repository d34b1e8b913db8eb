"""The graph that event functions are given, in the place of DGL's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl.graph import Graph
from maskcl.problems.graphs import merge


class DataGraph:
    """A graph with named tensors for its nodes and its edges.

    Args:
        messages: the edges that convolutions use; its features become ``ndata["feat"]``.
        links: int64 [n, 2], where the edges that ``edges()`` and ``edata`` are about are other
            ones: the links of a link problem.
        sizes: int64 [B], where several graphs are one: the number of nodes of each.

    Attributes:
        ndata: tensors with one row a node.
        edata: tensors with one row an edge of ``edges()``.
    """

    def __init__(
        self, messages: Graph, *, links: Tensor | None = None, sizes: Tensor | None = None
    ) -> None:
        self.messages, self.links, self.sizes = messages, links, sizes
        self.ndata: dict[str, Tensor] = {}
        if messages.num_features:
            self.ndata["feat"] = messages.x.to_dense()
        self.edata: dict[str, Tensor] = {}
        self._moved: dict[tuple[str, torch.device], Tensor] = {}

    def num_nodes(self) -> int:
        """N."""
        return self.messages.num_nodes

    def num_edges(self) -> int:
        """How many edges ``edges()`` has."""
        return len(self.edges()[0])

    def edges(self) -> tuple[Tensor, Tensor]:
        """Sources and destinations, int64 [E] each."""
        both = self.messages.edge_index if self.links is None else self.links.T
        return both[0], both[1]

    def batch_num_nodes(self) -> Tensor:
        """Number of nodes of each graph, int64 [B]; of one graph [1]."""
        return torch.tensor([self.num_nodes()]) if self.sizes is None else self.sizes

    def adjacency(self, kind: str, device: torch.device | None = None) -> Tensor:
        """The messages' edges as `Graph.edges` gives them, on a device; kept for each."""
        edges = self.messages.edges(kind)
        if device is None or edges.device == device:
            return edges
        if (kind, device) not in self._moved:
            self._moved[kind, device] = edges.to(device)
        return self._moved[kind, device]

    def to(self, device: torch.device | str) -> DataGraph:
        """The graph with its tensors on the device; itself where they are."""
        target = torch.device(device)
        found = [*self.ndata.values(), *self.edata.values()]
        if all(tensor.device == target for tensor in found):
            return self
        copy = self.clone()
        copy.ndata = {name: tensor.to(target) for name, tensor in self.ndata.items()}
        copy.edata = {name: tensor.to(target) for name, tensor in self.edata.items()}
        return copy

    def clone(self) -> DataGraph:
        """Another graph with the same tensors: what is put in or popped there stays there."""
        copy = DataGraph(self.messages, links=self.links, sizes=self.sizes)
        copy.ndata, copy.edata = dict(self.ndata), dict(self.edata)
        copy._moved = self._moved
        return copy

    def __repr__(self) -> str:
        counts = f"num_nodes={self.num_nodes()}, num_edges={self.num_edges()}"
        return f"DataGraph({counts}, ndata={list(self.ndata)}, edata={list(self.edata)})"


def graph(edges: tuple[Tensor, Tensor], *, num_nodes: int | None = None) -> DataGraph:
    """A graph from its sources and destinations; fill ``ndata`` and ``edata`` yourself.

    Args:
        edges: int64 [E] each.
        num_nodes: None: the largest number among the edges, plus 1.
    """
    index = torch.stack(list(edges))
    count = (int(index.max()) + 1 if index.numel() else 0) if num_nodes is None else num_nodes
    return DataGraph(Graph(torch.empty(count, 0), index))


def batch(graphs: Sequence[DataGraph]) -> DataGraph:
    """Several graphs as one with no edge between them, and ``ndata`` one after the other."""
    merged, _ = merge([item.messages for item in graphs])
    whole = DataGraph(merged, sizes=torch.tensor([item.num_nodes() for item in graphs]))
    whole.ndata = {k: torch.cat([item.ndata[k] for item in graphs]) for k in graphs[0].ndata}
    return whole
