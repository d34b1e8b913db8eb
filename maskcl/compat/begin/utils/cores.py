"""What of a graph model can be converted: modules whose arguments are tensors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.extras import install

Activation = Callable[[Tensor], Tensor]

# As modules these are computed together with a mask.
_MODULES: dict[Activation, type[nn.Module]] = {
    F.relu: nn.ReLU,
    F.gelu: nn.GELU,
    F.silu: nn.SiLU,
    F.elu: nn.ELU,
}


class Function(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Activation) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """function(x)."""
        return self.function(x)


class Convolutions(nn.Module):
    """GCN layers without bias, each with BatchNorm, activation and dropout behind it.

    Args:
        features: F of the input. hidden: of each layer. layers: how many.
        activation: a function, or a module, of which each layer takes a copy.
        dropout: of the input too.

    Shape: x [N, F], edges as ``Graph.edges("gcn")`` -> [N, hidden].
    """

    def __init__(
        self, features: int, hidden: int, layers: int, activation: Activation, dropout: nn.Dropout
    ) -> None:
        super().__init__()
        widths = [features] + [hidden] * layers
        self.dropout = dropout
        self.convs = nn.ModuleList(map(_convolution, widths[:-1], widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers))
        self.after = nn.ModuleList(_after(activation, dropout) for _ in range(layers))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Features of every node."""
        x = self.dropout(x)
        for conv, norm, after in zip(self.convs, self.norms, self.after, strict=True):
            x = after(norm(conv(x, edges)))
        return x


class NodeCore(nn.Module):
    """Features of all nodes and, where a head was put in, their logits."""

    def __init__(self, nodes: Convolutions) -> None:
        super().__init__()
        self.nodes = nodes
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """[N, F] -> [N, hidden] or [N, C]."""
        return self.head(self.nodes(x, edges))


class LinkCore(nn.Module):
    """Hadamard product of a pair's features and an MLP; a head as for NodeCore.

    Args:
        nodes: of the pairs' nodes. hidden: of each layer of the MLP, and of ``nodes``.
        layers, activation: of the MLP. dropout: of the product and behind each layer.
    """

    def __init__(
        self,
        nodes: Convolutions,
        hidden: int,
        layers: int,
        activation: Activation,
        dropout: nn.Dropout,
    ) -> None:
        super().__init__()
        self.nodes, self.dropout = nodes, dropout
        self.linears, self.after = _mlp([hidden] * (layers + 1), activation, dropout)
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        """Pairs int64 [n, 2] -> [n, hidden] or [n, C]."""
        h = self.nodes(x, edges)
        h = self.dropout(h[pairs[:, 0]] * h[pairs[:, 1]])
        for linear, after in zip(self.linears, self.after, strict=True):
            h = after(linear(h))
        return self.head(h)


class GraphCore(nn.Module):
    """A layer for the features, a readout over each graph's nodes, an MLP; a head as for NodeCore.

    Args:
        enc: of the features. nodes: behind it. readout: mean, sum, max or none.
        widths: of the MLP, the input's first. activation: of it. dropout: behind each layer.
    """

    def __init__(
        self,
        enc: nn.Module,
        nodes: Convolutions,
        readout: str,
        widths: list[int],
        activation: Activation,
        dropout: nn.Dropout,
    ) -> None:
        super().__init__()
        self.enc, self.nodes = enc, nodes
        self.mlp_layers, self.after = _mlp(widths, activation, dropout)
        self.readout = readout
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor, count: int) -> Tensor:
        """Graph int64 [N], each node's graph -> [count, hidden] or [count, C]."""
        h = read_out(self.readout, self.nodes(self.enc(x), edges), graph, count)
        for linear, after in zip(self.mlp_layers, self.after, strict=True):
            h = after(linear(h))
        return self.head(h)


def read_out(readout: str, h: Tensor, graph: Tensor, count: int) -> Tensor:
    """Rows of nodes as one of each graph; ``none`` leaves them as they are."""
    from torch_geometric import nn as geometric

    # Called by their own names, by which a tracer knows them.
    if readout == "mean":
        return geometric.global_mean_pool(h, graph, count)
    if readout == "sum":
        return geometric.global_add_pool(h, graph, count)
    if readout == "max":
        return geometric.global_max_pool(h, graph, count)
    return h


def _mlp(
    widths: list[int], activation: Activation, dropout: nn.Dropout
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Linear layers of these widths, and what is behind each: activation and dropout."""
    linears = [nn.Linear(inside, out) for inside, out in itertools.pairwise(widths)]
    return nn.ModuleList(linears), nn.ModuleList(_after(activation, dropout) for _ in linears)


def _after(activation: Activation, dropout: nn.Dropout) -> nn.Sequential:
    return nn.Sequential(_module(activation), dropout)


def _module(activation: Activation) -> nn.Module:
    if isinstance(activation, nn.Module):
        return copy.deepcopy(activation)
    known = _MODULES.get(activation)
    return Function(activation) if known is None else known()


def _convolution(features: int, hidden: int) -> nn.Module:
    try:
        from torch_geometric.nn import GCNConv
    except ImportError as error:
        raise ImportError(
            f"maskcl.compat.begin's models need torch_geometric: {install('graph')}"
        ) from error
    return GCNConv(features, hidden, normalize=False, bias=False)
