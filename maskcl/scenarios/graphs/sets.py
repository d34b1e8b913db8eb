"""Training and test data of graph problems: which nodes, pairs or graphs, and their labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskcl.graph import Graph


class NodeSet(Dataset):
    """Some nodes of a graph; the others pass messages.

    Args:
        graph: with all nodes.
        nodes: int64 [n].
        labels: int64 [n], or [n, d] values or multi-label targets; None where they are not to be
            known.
    """

    def __init__(self, graph: Graph, nodes: Tensor, labels: Tensor | None = None) -> None:
        _check("NodeSet", "nodes", nodes, (len(nodes),), graph.num_nodes)
        _check_labels("NodeSet", labels, len(nodes))
        self.graph, self.nodes, self.labels = graph, nodes, labels

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        return self.nodes[index], None if self.labels is None else self.labels[index]


class LinkSet(Dataset):
    """Some pairs of a graph's nodes.

    Args:
        graph: the edges that messages use.
        pairs: int64 [n, 2].
        labels: as of a NodeSet; None where they are not to be known, and in the training of link
            prediction, where every pair is a link and others are drawn.
        known: int64 [2, K]: all links that must not be drawn as negatives; None: ``graph``'s edges.
    """

    def __init__(
        self,
        graph: Graph,
        pairs: Tensor,
        labels: Tensor | None = None,
        known: Tensor | None = None,
    ) -> None:
        _check("LinkSet", "pairs", pairs, (len(pairs), 2), graph.num_nodes)
        _check_labels("LinkSet", labels, len(pairs))
        self.graph, self.pairs, self.labels = graph, pairs, labels
        self.known = graph.edge_index if known is None else known

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | None]:
        return self.pairs[index], None if self.labels is None else self.labels[index]


class GraphSet(Dataset):
    """Whole graphs.

    Args:
        graphs: at least one, all with the same features.
        labels: int64 [n], or [n, d] values or multi-label targets; None where they are not to be
            known.
    """

    def __init__(self, graphs: Sequence[Graph], labels: Tensor | None = None) -> None:
        widths = sorted({graph.num_features for graph in graphs})
        if len(widths) > 1:
            raise ValueError(f"GraphSet: graphs have {widths} features, wanted one number")
        _check_labels("GraphSet", labels, len(graphs))
        self.graphs, self.labels = list(graphs), labels

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, index: int) -> tuple[Graph, Tensor | None]:
        return self.graphs[index], None if self.labels is None else self.labels[index]


def _check(owner: str, name: str, value: Tensor, shape: tuple[int, ...], high: int) -> None:
    if value.dtype != torch.int64 or tuple(value.shape) != shape:
        wanted = "[n, 2]" if len(shape) == 2 else "[n]"
        raise ValueError(
            f"{owner}: {name} is {value.dtype}{list(value.shape)}, wanted int64 {wanted}"
        )
    if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < high:
        raise ValueError(
            f"{owner}: {name} are {int(value.min())} to {int(value.max())}, wanted 0 to {high - 1}"
        )


def _check_labels(owner: str, labels: Tensor | None, count: int) -> None:
    # Values and multi-label targets have several numbers for each.
    if labels is not None and (labels.shape[:1] != (count,) or labels.dim() > 2):
        raise ValueError(
            f"{owner}: labels has shape {list(labels.shape)}, wanted [{count}] or [{count}, d]"
        )
