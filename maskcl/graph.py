"""A graph with features, and its edges in the form that each kind of convolution takes."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

ADJACENCIES = ("index", "gcn", "mean", "sum")


class Graph:
    """Nodes with features and directed edges; immutable.

    Args:
        x: [N, F] floating; dense, or a torch sparse CSR tensor (bags of words).
        edge_index: int64 [2, E]; messages go from ``edge_index[0]`` to ``edge_index[1]``, as in
            torch_geometric. An undirected edge is there in both directions.

    Raises:
        TypeError, ValueError: an argument is not as above, or an edge names no node.
    """

    def __init__(self, x: Tensor, edge_index: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"Graph: x is {found}, wanted a floating tensor")
        if x.dim() != 2 or x.layout not in (torch.strided, torch.sparse_csr):
            raise ValueError(
                f"Graph: x has shape {list(x.shape)} and layout {x.layout},"
                " wanted [nodes, features], dense or sparse CSR"
            )
        if not isinstance(edge_index, Tensor) or edge_index.dtype != torch.int64:
            found = (
                edge_index.dtype if isinstance(edge_index, Tensor) else type(edge_index).__name__
            )
            raise TypeError(f"Graph: edge_index is {found}, wanted int64")
        if edge_index.dim() != 2 or edge_index.shape[0] != 2:
            raise ValueError(f"Graph: edge_index has shape {list(edge_index.shape)}, wanted [2, E]")
        if edge_index.numel() and not 0 <= int(edge_index.min()) <= int(edge_index.max()) < len(x):
            raise ValueError(
                f"Graph: edge_index names nodes {int(edge_index.min())} to {int(edge_index.max())},"
                f" wanted 0 to {len(x) - 1}"
            )
        self.x = x
        self.edge_index = edge_index
        self._kept: dict[str, Tensor] = {"index": edge_index}

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def num_features(self) -> int:
        """F."""
        return self.x.shape[1]

    def edges(self, kind: str) -> Tensor:
        """The edges as convolutions take them; made once.

        Args:
            kind: ``index``, int64 [2, E]; or a sparse CSR [N, N] whose row is the node that
                receives: ``sum``, the number of edges; ``mean``, each row divided by its sum;
                ``gcn``, D^-1/2 (A + I) D^-1/2 (Kipf and Welling 2017, eq. 2).

        Raises:
            ValueError: no such kind.
        """
        if kind not in self._kept:
            self._kept[kind] = adjacency(self.edge_index, self.num_nodes, kind, self.x.dtype)
        return self._kept[kind]

    @functools.cached_property
    def incoming(self) -> tuple[Tensor, Tensor]:
        """Senders by the node that receives: node i's are ``senders[offsets[i] : offsets[i + 1]]``.

        ``(offsets int64 [N + 1], senders int64 [E])``, made once.
        """
        source, target = self.edge_index
        count = torch.bincount(target, minlength=self.num_nodes)
        return torch.cat([count.new_zeros(1), count.cumsum(0)]), source[target.argsort(stable=True)]

    @functools.cached_property
    def degree(self) -> Tensor:
        """In-degrees with exactly one loop a node, as ``gcn`` counts: int64 [N], made once."""
        source, target = self.edge_index
        return torch.bincount(target[source != target], minlength=self.num_nodes) + 1

    def __repr__(self) -> str:
        size = self.edge_index.shape[1]
        return f"Graph(nodes={self.num_nodes}, features={self.num_features}, edges={size})"


def adjacency(
    edge_index: Tensor, num_nodes: int, kind: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sparse CSR [N, N] of a graph's edges; ``kind`` as for `Graph.edges`, but not ``index``.

    Raises:
        ValueError: no such kind.
    """
    if kind not in ADJACENCIES[1:]:
        raise ValueError(f"adjacency: kind is {kind!r}, wanted one of {', '.join(ADJACENCIES)}")
    source, target = edge_index
    if kind == "gcn":
        # One loop a node, whether it had one or not.
        nodes = torch.arange(num_nodes, device=edge_index.device)
        other = source != target
        source, target = torch.cat([source[other], nodes]), torch.cat([target[other], nodes])
    degree = torch.bincount(target, minlength=num_nodes).to(dtype)
    if kind == "gcn":
        scale = degree.rsqrt()
        values = scale[source] * scale[target]
    elif kind == "mean":
        values = degree.reciprocal()[target]
    else:
        values = torch.ones(len(source), dtype=dtype, device=edge_index.device)
    return csr(torch.stack([target, source]), values, (num_nodes, num_nodes))


def csr(indices: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """Sparse CSR matrix of int64 [2, E] positions and their [E] values; equal positions add up."""
    with warnings.catch_warnings():
        # torch calls its CSR layout a beta; it is what has a fast product. Some versions also say
        # that they do not check, here where they were asked to.
        warnings.filterwarnings("ignore", message=".*(Sparse CSR|Sparse invariant checks).*")
        matrix = torch.sparse_coo_tensor(indices, values, size, check_invariants=True)
        return matrix.coalesce().to_sparse_csr()
