"""Classification of a graph's nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskcl.graph import ADJACENCIES
from maskcl.problems.classification import Classification
from maskcl.problems.sampling import sample_subgraph
from maskcl.scenarios.graphs.sets import NodeSet


class NodeBatch(NamedTuple):
    """Arguments of a node network, and the target.

    Attributes:
        x: [N, F], dense or sparse CSR.
        edges: as the network's convolutions take them (``Graph.edges``).
        nodes: int64 [n], those to classify.
        target: int64 [n]; None at test.
    """

    x: Tensor
    edges: Tensor
    nodes: Tensor
    target: Tensor | None


class Node(Classification):
    """Classify nodes: ``net(x, edges, nodes) -> logits[n, classes]``.

    Args:
        adjacency: the kind of edges that the network takes (``Graph.edges``).
        fanouts: None: a step is the whole graph with all training nodes, whatever the batch size.
            Else how many neighbours a node hears from at most, for each hop from the batch's nodes
            outwards (Hamilton et al. 2017, section 3.1); -1 for all. Tests see the whole graph.
        output: of `predict`, ``label`` or ``score``.

    Raises:
        ValueError: an argument is not as above.
    """

    name = "node"

    def __init__(
        self,
        adjacency: str = "gcn",
        fanouts: Sequence[int] | None = None,
        output: str = "label",
    ) -> None:
        super().__init__(output)
        self.adjacency = checked_adjacency("Node", adjacency)
        self.fanouts = None if fanouts is None else tuple(fanouts)
        if fanouts is not None and (not fanouts or any(n < -1 or n == 0 for n in fanouts)):
            raise ValueError(
                f"Node: fanouts is {fanouts!r}, wanted a number above 0 (or -1) for each hop"
            )

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """How many batches `train_batches` yields for that many training nodes."""
        return 1 if self.fanouts is None else super().num_batches(num_samples, batch_size)

    def train_batches(
        self,
        dataset: NodeSet,
        order: Tensor | Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[NodeBatch]:
        """Batches of the training nodes in the given order; ``generator`` draws neighbours."""
        graph, labels = dataset.graph, dataset.labels
        for rows in self._parts(order, batch_size):
            target = None if labels is None else labels[rows]
            nodes = dataset.nodes[rows]
            if self.fanouts is None:
                yield NodeBatch(graph.x, graph.edges(self.adjacency), nodes, target)
            else:
                part, nodes = sample_subgraph(graph, nodes, self.fanouts, generator)
                yield NodeBatch(part.x, part.edges(self.adjacency), nodes, target)

    def per_sample(self, rows: Tensor, x: Tensor, edges: Tensor, nodes: Tensor) -> Tensor:
        """Features of the nodes from features of all rows: a node's own, and what it hears.

        Args:
            rows: [N, F].
            x: the network's input.
            edges: of the network's arguments.
            nodes: int64 [n].
        """
        return (rows + heard(rows, edges))[nodes]

    def test_batches(self, inputs: NodeSet, batch_size: int) -> Iterator[NodeBatch]:
        """One batch: the whole graph and all the test nodes."""
        graph = inputs.graph
        yield NodeBatch(graph.x, graph.edges(self.adjacency), inputs.nodes, None)


def checked_adjacency(owner: str, adjacency: str) -> str:
    """The kind of edges, if there is such.

    Raises:
        ValueError: there is not.
    """
    if adjacency not in ADJACENCIES:
        raise ValueError(
            f"{owner}: adjacency is {adjacency!r}, wanted one of {', '.join(ADJACENCIES)}"
        )
    return adjacency


def heard(rows: Tensor, edges: Tensor) -> Tensor:
    """[N, F]: the mean of a node's neighbours' rows, or what a network's edges make of them.

    Args:
        rows: [N, F].
        edges: as `Graph.edges` gives them.
    """
    if edges.layout == torch.sparse_csr:
        return edges.to(rows.dtype) @ rows
    source, target = edges
    total = torch.zeros_like(rows).index_add_(0, target, rows[source])
    return total / torch.bincount(target, minlength=len(rows)).clamp_min(1)[:, None]
