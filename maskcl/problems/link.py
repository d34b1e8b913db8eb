"""Classification of pairs of nodes, and prediction of which pairs are links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskcl.problems.classification import Classification
from maskcl.problems.node import checked_adjacency, heard
from maskcl.problems.sampling import draw_negatives
from maskcl.scenarios.graphs.sets import LinkSet


class LinkBatch(NamedTuple):
    """Arguments of a link network, and the target.

    Attributes:
        x: [N, F], dense or sparse CSR.
        edges: those that messages use, as the network's convolutions take them (``Graph.edges``).
        pairs: int64 [n, 2].
        target: int64 [n]; None at test.
    """

    x: Tensor
    edges: Tensor
    pairs: Tensor
    target: Tensor | None


class Link(Classification):
    """Classify pairs of nodes: ``net(x, edges, pairs) -> logits[n, classes]``.

    Messages go over the whole graph in every step; a batch is of pairs.

    Args:
        adjacency: the kind of edges that the network takes (``Graph.edges``).
        prediction: whether a pair is a link is the question: one logit, and in training a pair
            that is none for each that is one, drawn anew in every epoch.
        output: of `predict`, ``label`` or ``score``.

    Raises:
        ValueError: an argument is not as above.
    """

    name = "link"

    def __init__(
        self, adjacency: str = "gcn", prediction: bool = False, output: str = "label"
    ) -> None:
        super().__init__(output)
        self.adjacency = checked_adjacency("Link", adjacency)
        self.prediction = prediction

    def train_batches(
        self,
        dataset: LinkSet,
        order: Tensor | Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[LinkBatch]:
        """Batches of the training pairs in the given order; ``generator`` draws negatives."""
        graph, labels = dataset.graph, dataset.labels
        edges = graph.edges(self.adjacency)
        for rows in self._parts(order, batch_size):
            pairs = dataset.pairs[rows]
            target = None if labels is None else labels[rows]
            if self.prediction:
                none = draw_negatives(pairs, dataset.known, graph.num_nodes, generator)
                target = torch.cat([torch.ones(len(pairs)), torch.zeros(len(none))]).long()
                pairs = torch.cat([pairs, none])
            yield LinkBatch(graph.x, edges, pairs, target)

    def per_sample(self, rows: Tensor, x: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        """Features of pairs from features of all nodes [N, F]: [n, 2 F], the order of ends aside.

        Args:
            rows: [N, F].
            x: the network's input.
            edges: of the network's arguments.
            pairs: int64 [n, 2].
        """
        first, second = (rows + heard(rows, edges))[pairs.T]
        return torch.cat([first + second, (first - second).abs()], 1)

    def test_batches(self, inputs: LinkSet, batch_size: int) -> Iterator[LinkBatch]:
        """One batch: the whole graph and all the test pairs."""
        graph = inputs.graph
        yield LinkBatch(graph.x, graph.edges(self.adjacency), inputs.pairs, None)
