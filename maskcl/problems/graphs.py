"""Classification of whole graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskcl.graph import Graph
from maskcl.problems.classification import Classification
from maskcl.problems.node import checked_adjacency, heard
from maskcl.scenarios.graphs.sets import GraphSet


class GraphBatch(NamedTuple):
    """Arguments of a graph network, and the target. The graphs are one graph with no edge between.

    Attributes:
        x: [N, F], of all nodes.
        edges: as the network's convolutions take them (``Graph.edges``).
        graph: int64 [N], the graph that each node belongs to, ascending.
        num_graphs: n.
        target: int64 [n]; None at test.
    """

    x: Tensor
    edges: Tensor
    graph: Tensor
    num_graphs: int
    target: Tensor | None


class Graphs(Classification):
    """Classify graphs: ``net(x, edges, graph, num_graphs) -> logits[n, classes]``.

    Args:
        adjacency: the kind of edges that the network takes (``Graph.edges``).
        output: of `predict`, ``label`` or ``score``.

    Raises:
        ValueError: an argument is not as above.
    """

    name = "graph"

    def __init__(self, adjacency: str = "gcn", output: str = "label") -> None:
        super().__init__(output)
        self.adjacency = checked_adjacency("Graphs", adjacency)

    def train_batches(
        self,
        dataset: GraphSet,
        order: Tensor | Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[GraphBatch]:
        """Batches of the training graphs in the given order."""
        for rows in self._parts(order, batch_size):
            yield self._batch(dataset, rows)

    def test_batches(self, inputs: GraphSet, batch_size: int) -> Iterator[GraphBatch]:
        """Batches of the test graphs in order."""
        for rows in torch.arange(len(inputs)).split(batch_size):
            yield self._batch(inputs, rows)

    def per_sample(
        self, rows: Tensor, x: Tensor, edges: Tensor, graph: Tensor, num_graphs: int
    ) -> Tensor:
        """Features of graphs from features of all nodes [N, F]: means over each one's nodes.

        Args:
            rows: [N, F].
            x: the network's input.
            edges: of the network's arguments.
            graph: int64 [N], of each node.
            num_graphs: n.
        """
        rows = rows + heard(rows, edges)
        total = rows.new_zeros(num_graphs, rows.shape[1]).index_add_(0, graph, rows)
        return total / torch.bincount(graph, minlength=num_graphs).clamp_min(1)[:, None]

    def segments(self, batch: GraphBatch) -> Tensor:
        """The sample that each row inside the network belongs to, int64 [N]."""
        return batch.graph

    def _batch(self, dataset: GraphSet, rows: Tensor) -> GraphBatch:
        graphs = [dataset.graphs[i] for i in rows.tolist()]
        merged, index = merge(graphs)
        target = None if dataset.labels is None else dataset.labels[rows]
        return GraphBatch(merged.x, merged.edges(self.adjacency), index, len(graphs), target)


def merge(graphs: Sequence[Graph]) -> tuple[Graph, Tensor]:
    """Graphs as one, with no edge between them, and int64 [N], the graph of each node."""
    sizes = torch.tensor([graph.num_nodes for graph in graphs])
    starts = (sizes.cumsum(0) - sizes).tolist()
    edges = [graph.edge_index + start for graph, start in zip(graphs, starts, strict=True)]
    index = torch.repeat_interleave(torch.arange(len(graphs)), sizes)
    return Graph(torch.cat([graph.x for graph in graphs]), torch.cat(edges, 1)), index
