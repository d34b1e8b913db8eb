"""BeGin's graph convolution by itself, for models of one's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from maskcl.compat.begin.data import Block, DataGraph
from maskcl.compat.begin.utils.layer_names import graph_of

NORMS = ("none", "both", "right")


class GCNConv(nn.Module):
    """A graph convolution: what a node's neighbours send, summed, times a weight.

    Args:
        in_feats, out_feats: of a node.
        norm: "both": what is sent is divided by the root of the sender's degree, and the sum by
            that of the receiver's; "right": the sum by the degree; "none".
        weight: whether it has one, [in_feats, out_feats]; else `forward` is given it.
        bias: whether it has one.
        activation: behind the sum; None for none.
        allow_zero_in_degree: True: nodes that hear nobody are no error.
        edge_encoder_fn: makes what takes ``edge_attr`` to the size of what is sent.

    Shape: [N, in_feats] -> [N, out_feats].

    Raises:
        ValueError: norm is unknown.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        in_feats: int,
        out_feats: int,
        norm: str = "both",
        weight: bool = True,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
        allow_zero_in_degree: bool = False,
        edge_encoder_fn: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"GCNConv: norm is {norm!r}, wanted one of {', '.join(NORMS)}")
        self._in_feats, self._out_feats, self._norm = in_feats, out_feats, norm
        self._allow_zero_in_degree, self._activation = allow_zero_in_degree, activation
        self.weight = nn.Parameter(torch.empty(in_feats, out_feats)) if weight else None
        self.bias = nn.Parameter(torch.empty(out_feats)) if bias else None
        self.reset_parameters()
        if edge_encoder_fn is not None:
            self.edge_encoder = edge_encoder_fn()

    def reset_parameters(self) -> None:
        """Weights of Glorot's uniform distribution, a bias of 0."""
        if self.weight is not None:
            nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def set_allow_zero_in_degree(self, set_value: bool) -> None:
        """Whether nodes that hear nobody are no error."""
        self._allow_zero_in_degree = set_value

    def forward(
        self,
        graph: DataGraph | Block,
        feat: Tensor,
        weight: Tensor | None = None,
        edge_weight: Tensor | None = None,
        edge_attr: Tensor | None = None,
    ) -> Tensor:
        """Features of every node.

        Args:
            graph: its messages' edges count, and one of each node to itself where it has loops.
            feat: [N, in_feats].
            weight: where the module has none.
            edge_weight: [E] or [E, 1], what a message is multiplied with; of a loop 1.
            edge_attr: [E, ..] instead, what the edge encoder makes a summand of; of a loop 0.

        Raises:
            ValueError: a weight is given and one is here, edges are not E, or a node hears nobody.
        """
        found = graph_of(graph)
        assert found is not None
        if weight is not None and self.weight is not None:
            raise ValueError("GCNConv: weight is given, wanted None: the module has its own")
        weight = self.weight if weight is None else weight
        source, target = self._edges(found, feat)
        degrees = [
            torch.bincount(ends, minlength=len(feat)).clamp(min=1).to(feat.dtype).unsqueeze(1)
            for ends in (source, target)
        ]
        h = feat * degrees[0].rsqrt() if self._norm == "both" else feat
        before = weight is not None and self._in_feats > self._out_feats
        h = h @ weight if before and weight is not None else h
        sent = self._sent(found, h[source], edge_weight, edge_attr)
        h = h.new_zeros(len(feat), h.shape[1]).index_add_(0, target, sent)
        h = h @ weight if weight is not None and not before else h
        if self._norm != "none":
            h = h * (degrees[1].rsqrt() if self._norm == "both" else degrees[1].reciprocal())
        h = h if self.bias is None else h + self.bias
        return h if self._activation is None else self._activation(h)

    def _edges(self, graph: DataGraph, feat: Tensor) -> Tensor:
        """Sources and destinations [2, E], loops last."""
        edges = graph.adjacency("index", feat.device)
        if graph.loops:
            edges = edges[:, edges[0] != edges[1]]
            nodes = torch.arange(graph.num_nodes(), device=feat.device)
            return torch.cat([edges, nodes.expand(2, -1)], dim=1)
        if not self._allow_zero_in_degree and bool(
            (torch.bincount(edges[1], minlength=graph.num_nodes()) == 0).any()
        ):
            raise ValueError(
                "GCNConv: graph has nodes with no edge that ends in them, wanted none, or"
                " allow_zero_in_degree=True"
            )
        return edges

    def _sent(
        self, graph: DataGraph, rows: Tensor, edge_weight: Tensor | None, edge_attr: Tensor | None
    ) -> Tensor:
        name, given = (
            ("edge_attr", edge_attr) if edge_weight is None else ("edge_weight", edge_weight)
        )
        if given is None:
            return rows
        count = len(rows) - graph.num_nodes() if graph.loops else len(rows)
        if len(given) != count:
            raise ValueError(f"GCNConv: {name} has {len(given)} rows, wanted {count}, one an edge")
        if name == "edge_attr":
            return torch.cat([rows[:count] + self.edge_encoder(given), rows[count:]])
        return torch.cat([rows[:count] * given.reshape(count, -1), rows[count:]])

    def extra_repr(self) -> str:
        """Sizes and normalization."""
        return f"in={self._in_feats}, out={self._out_feats}, normalization={self._norm}"
