"""Message-passing encoders and heads for nodes, links and whole graphs (torch_geometric).

Their forwards take the first fields of a problem's batch: ``net(x, edges, nodes)``,
``net(x, edges, pairs)``, ``net(x, edges, graph, count)``. All activations are modules used once, so
that conversion can fuse a mask into them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from maskcl.extras import install
from maskcl.models.graph_encoder import NodeEncoder
from maskcl.models.graph_options import GRAPH_PROBLEMS, READOUTS

try:
    from torch_geometric.nn import global_add_pool, global_max_pool, global_mean_pool
except ImportError as error:
    raise ImportError(f"maskcl's graph models need torch_geometric: {install('graph')}") from error

__all__ = ["GraphClassifier", "LinkClassifier", "NodeClassifier", "NodeEncoder", "build"]


class NodeClassifier(nn.Module):
    """An encoder and one linear layer, for the nodes asked for.

    Args:
        encoder: of the nodes.
        classes: outputs, C.

    Shape: x [N, F], edges, nodes int64 [n] -> [n, C].
    """

    def __init__(self, encoder: NodeEncoder, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.width, classes)

    def forward(self, x: Tensor, edges: Tensor, nodes: Tensor) -> Tensor:
        """Logits of the nodes."""
        return self.head(self.encoder(x, edges)[nodes])


class LinkClassifier(nn.Module):
    """An encoder and an MLP of the product of a pair's rows, element by element (Hadamard).

    Args:
        encoder: of the nodes.
        classes: outputs, C; 1 for link prediction.
        hidden: widths of the MLP's hidden layers; none for a linear layer.
        dropout: after each of them.

    Shape: x [N, F], edges, pairs int64 [n, 2] -> [n, C]. The order in a pair is without effect.
    """

    def __init__(
        self,
        encoder: NodeEncoder,
        classes: int,
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = _head(encoder.width, classes, hidden, dropout)

    def forward(self, x: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        """Logits of the pairs."""
        h = self.encoder(x, edges)
        return self.head(h[pairs[:, 0]] * h[pairs[:, 1]])


class GraphClassifier(nn.Module):
    """An encoder, a readout over each graph's nodes and an MLP.

    Args:
        encoder: of the nodes.
        classes: outputs, C.
        readout: ``mean``, ``sum`` or ``max`` over the nodes of a graph.
        hidden: widths of the MLP's hidden layers; none for a linear layer.
        dropout: after each of them.

    Shape: x [N, F], edges, graph int64 [N] (each node's graph), count -> [count, C].

    Raises:
        ValueError: the readout is unknown.
    """

    def __init__(
        self,
        encoder: NodeEncoder,
        classes: int,
        readout: str = "mean",
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if readout not in READOUTS:
            raise ValueError(f"readout is {readout!r}, wanted one of {', '.join(READOUTS)}")
        self.encoder = encoder
        self.readout = readout
        self.head = _head(encoder.width, classes, hidden, dropout)

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor, count: int) -> Tensor:
        """Logits of the graphs."""
        h = self.encoder(x, edges)
        # Called by their own names, by which a tracer knows them.
        if self.readout == "mean":
            pooled = global_mean_pool(h, graph, count)
        elif self.readout == "sum":
            pooled = global_add_pool(h, graph, count)
        else:
            pooled = global_max_pool(h, graph, count)
        return self.head(pooled)


def build(
    problem: str,
    encoder: str,
    features: int,
    classes: int,
    *,
    hidden: Sequence[int] = (256, 256, 256),
    dropout: float = 0.0,
    norm: bool = False,
    heads: int = 1,
    readout: str = "mean",
) -> NodeClassifier | LinkClassifier | GraphClassifier:
    """``maskcl.models.build_graph``."""
    if problem not in GRAPH_PROBLEMS:
        raise ValueError(f"problem is {problem!r}, wanted one of {', '.join(GRAPH_PROBLEMS)}")
    if problem != "graph" and readout != "mean":
        raise ValueError(f"readout is {readout!r}, which problem {problem!r} has not")
    if classes < 1:
        raise ValueError(f"classes is {classes}, wanted at least 1")
    nodes = NodeEncoder(encoder, features, hidden, dropout, norm, heads)
    if problem == "node":
        return NodeClassifier(nodes, classes)
    if problem == "link":
        return LinkClassifier(nodes, classes, (nodes.width,), dropout)
    return GraphClassifier(nodes, classes, readout, (nodes.width,), dropout)


def _head(features: int, classes: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))
