"""The graphs that event functions are given, in the place of DGL's."""

from __future__ import annotations

import itertools
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
        loops: whether every node hears itself too: BeGin puts such edges into the graphs of nodes
            and of links, and not into whole graphs. They are not among ``edges()``.

    Attributes:
        ndata: tensors with one row a node.
        edata: tensors with one row an edge of ``edges()``.
    """

    def __init__(
        self,
        messages: Graph,
        *,
        links: Tensor | None = None,
        sizes: Tensor | None = None,
        loops: bool = False,
    ) -> None:
        self.messages, self.links, self.sizes, self.loops = messages, links, sizes, loops
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

    # Under both of DGL's names, as BeGin's code has it.
    number_of_nodes, number_of_edges = num_nodes, num_edges

    def edges(self) -> tuple[Tensor, Tensor]:
        """Sources and destinations, int64 [E] each."""
        both = self.messages.edge_index if self.links is None else self.links.T
        return both[0], both[1]

    def in_degrees(self) -> Tensor:
        """How many of ``edges()`` end in each node, int64 [N]."""
        return torch.bincount(self.edges()[1], minlength=self.num_nodes())

    def out_degrees(self) -> Tensor:
        """How many of ``edges()`` begin in each node, int64 [N]."""
        return torch.bincount(self.edges()[0], minlength=self.num_nodes())

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

    @property
    def device(self) -> torch.device:
        """Of the tensors in ``ndata``, or of the edges where there is none."""
        found = next(iter(self.ndata.values()), self.messages.edge_index)
        return found.device

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
        copy = DataGraph(self.messages, links=self.links, sizes=self.sizes, loops=self.loops)
        copy.ndata, copy.edata = dict(self.ndata), dict(self.edata)
        copy._moved = self._moved
        return copy

    def __repr__(self) -> str:
        counts = f"num_nodes={self.num_nodes()}, num_edges={self.num_edges()}"
        return f"DataGraph({counts}, ndata={list(self.ndata)}, edata={list(self.edata)})"


class Block:
    """What one layer hears over in a mini-batch of nodes, in the place of DGL's block.

    Args:
        graph: the nodes that the layer reads, and their edges.
        rows: int64 [n], those of them that it is to answer for; None for all.
    """

    def __init__(self, graph: DataGraph, rows: Tensor | None = None) -> None:
        self.graph, self.rows = graph, rows

    @property
    def srcdata(self) -> dict[str, Tensor]:
        """Tensors with a row for each node that is read."""
        return self.graph.ndata

    @property
    def dstdata(self) -> dict[str, Tensor]:
        """Tensors with a row for each node that is answered for."""
        if self.rows is None:
            return self.graph.ndata
        return {k: v[self.rows.to(v.device)] for k, v in self.graph.ndata.items()}

    def num_src_nodes(self) -> int:
        """How many nodes are read."""
        return self.graph.num_nodes()

    def num_dst_nodes(self) -> int:
        """How many are answered for."""
        return self.graph.num_nodes() if self.rows is None else len(self.rows)

    def to(self, device: torch.device | str) -> Block:
        """The block with its tensors on the device."""
        return Block(self.graph.to(device), self.rows)


def graph(edges: tuple[Tensor, Tensor], *, num_nodes: int | None = None) -> DataGraph:
    """A graph from its sources and destinations; fill ``ndata`` and ``edata`` yourself.

    Args:
        edges: int64 [E] each.
        num_nodes: None: the largest number among the edges, plus 1.
    """
    index = torch.stack(list(edges))
    count = (int(index.max()) + 1 if index.numel() else 0) if num_nodes is None else num_nodes
    return DataGraph(Graph(torch.empty(count, 0), index))


def part_of(graph: DataGraph, nodes: Tensor) -> DataGraph:
    """Some nodes, int64 [n], and the messages among them; with their ``feat``."""
    place = torch.full((graph.num_nodes(),), -1)
    place[nodes.cpu()] = torch.arange(len(nodes))
    edges = place[graph.messages.edge_index]
    edges = edges[:, (edges >= 0).all(0)]
    found = DataGraph(Graph(torch.empty(len(nodes), 0), edges), loops=graph.loops)
    feat = graph.ndata["feat"]
    found.ndata["feat"] = feat[nodes.to(feat.device)]
    return found


def heard(graph: DataGraph) -> DataGraph:
    """A graph without nodes that no edge joins to another."""
    source, target = graph.messages.edge_index
    other = source != target
    return part_of(graph, torch.cat([source[other], target[other]]).unique())


def without_edges(count: int) -> DataGraph:
    """``count`` nodes that hear themselves alone."""
    none = torch.empty(0, dtype=torch.int64)
    return DataGraph(Graph(torch.empty(count, 0), torch.stack([none, none])), loops=True)


def batch(graphs: Sequence[DataGraph]) -> DataGraph:
    """Several graphs as one with no edge between them, and ``ndata`` one after the other."""
    merged, _ = merge([item.messages for item in graphs])
    whole = DataGraph(merged, sizes=torch.tensor([item.num_nodes() for item in graphs]))
    whole.ndata = {k: torch.cat([item.ndata[k] for item in graphs]) for k in graphs[0].ndata}
    return whole


def unbatch(whole: DataGraph) -> list[DataGraph]:
    """The graphs that `batch` has made one of, with their ``feat``."""
    sizes = whole.batch_num_nodes().tolist()
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [part_of(whole, torch.arange(a, b)) for a, b in itertools.pairwise(starts)]
