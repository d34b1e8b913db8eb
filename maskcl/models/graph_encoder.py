"""Message-passing encoders of nodes, made of torch_geometric's convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from maskcl.extras import install
from maskcl.models.graph_options import ENCODERS

try:
    from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv
except ImportError as error:
    raise ImportError(f"maskcl's graph models need torch_geometric: {install('graph')}") from error


class EncoderLayer(nn.Module):
    """A convolution, then BatchNorm (with ``norm``), ReLU and dropout (above 0).

    Args:
        encoder: one of ``maskcl.models.ENCODERS``.
        features: F of the input.
        width: F of the output.
        dropout: probability in [0, 1).
        norm: BatchNorm1d in front of the ReLU.
        heads: of ``gat``, whose outputs stand side by side.
    """

    def __init__(
        self, encoder: str, features: int, width: int, dropout: float, norm: bool, heads: int
    ) -> None:
        super().__init__()
        self.conv = _conv(encoder, features, width, heads)
        parts: list[nn.Module] = [nn.BatchNorm1d(width)] if norm else []
        parts.append(nn.ReLU())
        if dropout > 0:
            parts.append(nn.Dropout(dropout))
        self.after = nn.Sequential(*parts)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """[N, features] -> [N, width]."""
        return self.after(self.conv(x, edges))


def _conv(encoder: str, features: int, width: int, heads: int) -> nn.Module:
    # The weights of all but attention are in the adjacency, which is one sparse product.
    if encoder == "gcn":
        return GCNConv(features, width, normalize=False)
    if encoder == "sage":
        return SAGEConv(features, width, aggr="sum")
    if encoder == "gin":
        inner = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))
        return GINConv(inner)
    return GATConv(features, width // heads, heads=heads)


class NodeEncoder(nn.Module):
    """Rows of features for every node of a graph, one layer for each hop.

    - ``gcn`` (Kipf and Welling 2017, eq. 2): A_hat X W, adjacency ``gcn``.
    - ``sage`` (Hamilton et al. 2017, mean aggregator): mean of neighbours W_l + X W_r, ``mean``.
    - ``gin`` (Xu et al. 2019, eq. 4.1, epsilon 0): an MLP of the sum over a node and its
      neighbours, ``sum``.
    - ``gat`` (Velickovic et al. 2018, eq. 4): neighbours weighted by attention, ``index``.

    Args:
        encoder: one of ``maskcl.models.ENCODERS``.
        features: F of the input.
        hidden: outputs of each layer, at least one.
        dropout: probability after each layer, in [0, 1); 0 adds no module.
        norm: BatchNorm1d after each convolution.
        heads: of ``gat``, a divisor of every width; 1 for the others.

    Attributes:
        encoder: its name.
        width: F of the output.
        adjacency: what its convolutions take for the edges: a kind of ``Graph.edges``.
        sparse_input: whether it begins with products, which take sparse features as they are.
            gin begins with a sum, and makes sparse features dense in every forward: give it dense
            ones to do it once.

    Shape: x [N, features], dense or sparse CSR, and edges -> [N, width].

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        encoder: str,
        features: int,
        hidden: Sequence[int] = (256, 256, 256),
        dropout: float = 0.0,
        norm: bool = False,
        heads: int = 1,
    ) -> None:
        super().__init__()
        _check_encoder(encoder, features, hidden, dropout, heads)
        self.encoder = encoder
        self.width = hidden[-1]
        self.adjacency = ENCODERS[encoder]
        self.sparse_input = encoder != "gin"
        self.layers = nn.ModuleList()
        for width in hidden:
            self.layers.append(EncoderLayer(encoder, features, width, dropout, norm, heads))
            features = width

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Features of every node."""
        if not self.sparse_input:
            x = x.to_dense()
        for layer in self.layers:
            x = layer(x, edges)
        return x


def _check_encoder(
    encoder: str, features: int, hidden: Sequence[int], dropout: float, heads: int
) -> None:
    if encoder not in ENCODERS:
        raise ValueError(f"encoder is {encoder!r}, wanted one of {', '.join(ENCODERS)}")
    if features < 1:
        raise ValueError(f"features is {features}, wanted at least 1")
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must be one or more widths of at least 1, got {tuple(hidden)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    if heads != 1 and encoder != "gat":
        raise ValueError(f"heads belongs to gat, {encoder} has none")
    if heads < 1 or any(width % heads for width in hidden):
        raise ValueError(f"heads is {heads}, wanted a divisor of every width in {tuple(hidden)}")
