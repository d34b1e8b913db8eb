"""What of a graph model can be converted: modules whose arguments are tensors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

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
        dropout: of the input too, unless it is 0.

    Shape: x [N, F], edges as ``Graph.edges("gcn")`` -> [N, hidden].
    """

    def __init__(
        self, features: int, hidden: int, layers: int, activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        widths = [features] + [hidden] * layers
        self.enter = _dropout(dropout)
        self.convs = nn.ModuleList(map(_convolution, widths[:-1], widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(layers))
        self.after = nn.ModuleList(_after(activation, dropout) for _ in range(layers))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Features of every node."""
        x = self.enter(x)
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
    """Hadamard product of a pair's features and an MLP; a head as for NodeCore."""

    def __init__(self, nodes: Convolutions, mlp: nn.Sequential) -> None:
        super().__init__()
        self.nodes, self.mlp = nodes, mlp
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        """Pairs int64 [n, 2] -> [n, hidden] or [n, C]."""
        h = self.nodes(x, edges)
        return self.head(self.mlp(h[pairs[:, 0]] * h[pairs[:, 1]]))


class GraphCore(nn.Module):
    """A layer for the features, a readout over each graph's nodes, an MLP; a head as for NodeCore.

    Args:
        enter: of the features. nodes, mlp: as they say. readout: mean, sum, max or none.
    """

    def __init__(
        self, enter: nn.Module, nodes: Convolutions, readout: str, mlp: nn.Sequential
    ) -> None:
        super().__init__()
        self.enter, self.nodes, self.mlp = enter, nodes, mlp
        self.readout = readout
        self.head: nn.Module = nn.Identity()

    def forward(self, x: Tensor, edges: Tensor, graph: Tensor, count: int) -> Tensor:
        """Graph int64 [N], each node's graph -> [count, hidden] or [count, C]."""
        from torch_geometric import nn as geometric

        h = self.nodes(self.enter(x), edges)
        # Called by their own names, by which a tracer knows them.
        if self.readout == "mean":
            h = geometric.global_mean_pool(h, graph, count)
        elif self.readout == "sum":
            h = geometric.global_add_pool(h, graph, count)
        elif self.readout == "max":
            h = geometric.global_max_pool(h, graph, count)
        return self.head(self.mlp(h))


def layers(widths: list[int], activation: Activation, dropout: float) -> nn.Sequential:
    """Linear layers of these widths, each with activation and dropout behind it."""
    parts: list[nn.Module] = []
    for inside, out in itertools.pairwise(widths):
        parts += [nn.Linear(inside, out), *_after(activation, dropout)]
    return nn.Sequential(*parts)


def _after(activation: Activation, dropout: float) -> nn.Sequential:
    return nn.Sequential(_module(activation), *([nn.Dropout(dropout)] if dropout > 0 else []))


def _dropout(dropout: float) -> nn.Module:
    return nn.Dropout(dropout) if dropout > 0 else nn.Identity()


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
            "maskcl.compat.begin's models need torch_geometric: pip install 'maskcl[graph]'"
        ) from error
    return GCNConv(features, hidden, normalize=False, bias=False)
