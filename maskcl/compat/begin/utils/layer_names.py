"""BeGin's names for the layers of a model, which lie in its core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from maskcl.compat.begin.data import Block, DataGraph, without_edges
from maskcl.compat.begin.utils.cores import Activation, Convolutions


class LayerNames:
    """``convs``, ``norms``, ``dropout`` and ``activation`` of what has convolutions in it.

    What they give belongs to the core: weights may be read and changed there, and layers called,
    but to put others in their place, put them into the core. In a network with HAT's masks a mask
    comes with the norm behind its convolution, and from the network's forward: there layers that
    are called one by one raise a RuntimeError.
    """

    _given_activation: tuple[Activation, ...]

    @property
    def _inside(self) -> Any:
        raise NotImplementedError

    @property
    def convs(self) -> list[Convolution]:
        """The convolutions, each to be called with a graph and its nodes' features."""
        return [Convolution(conv, self._kind) for conv in self._nodes.convs]

    @property
    def norms(self) -> nn.ModuleList:
        """The norm behind each convolution."""
        return self._nodes.norms

    @property
    def dropout(self) -> nn.Dropout:
        """The one that is behind each layer."""
        return self._nodes.dropout

    @property
    def activation(self) -> Activation:
        """As it was given; a module is copied for each layer."""
        return self._given_activation[0]

    @property
    def _nodes(self) -> Convolutions:
        return self._inside.nodes

    @property
    def _kind(self) -> str:
        return getattr(self, "adjacency", "gcn")


class Convolution:
    """One of a model's convolutions, as BeGin's code calls it.

    Args:
        conv: torch_geometric's, or a converted one.
        kind: of edges that it takes.
    """

    def __init__(self, conv: Any, kind: str) -> None:
        self._conv, self._kind = conv, kind
        layer = getattr(conv, "conv", conv)
        self._linear = layer.lin
        self._in_feats, self._out_feats = layer.in_channels, layer.out_channels
        self._norm, self.bias = "both", None

    @property
    def weight(self) -> Tensor:
        """The layer's own weight, seen as [inputs, outputs]."""
        return self._linear.weight.t()

    def __call__(self, graph: DataGraph | Block | None, feat: Tensor) -> Tensor:
        """Features [N, inputs] -> [N, outputs]; without a graph every node hears itself alone."""
        graph = graph_of(graph) or without_edges(len(feat))
        return self._conv(feat, graph.adjacency(self._kind, feat.device))

    def parameters(self) -> list[nn.Parameter]:
        """Those of the layer."""
        return list(self._conv.parameters())

    def reset_parameters(self) -> None:
        """Draw the weight anew."""
        self._linear.reset_parameters()

    def __repr__(self) -> str:
        return (
            f"Convolution(in={self._in_feats}, out={self._out_feats}, normalization={self._norm})"
        )


def graph_of(graph: DataGraph | Block | None) -> DataGraph | None:
    """The graph of a block; a graph itself."""
    return graph.graph if isinstance(graph, Block) else graph


def convolve(
    nodes: Convolutions,
    edges: Sequence[Tensor],
    x: Tensor,
    masks: Sequence[Tensor] | None = None,
) -> Tensor:
    """The convolutions one by one.

    Args:
        nodes: the layers.
        edges: for each layer.
        x: [N, F].
        masks: for each layer [hidden], what is behind it times that; None for none.
    """
    x = nodes.dropout(x)
    for i, (conv, norm, after) in enumerate(zip(nodes.convs, nodes.norms, nodes.after)):
        x = after(norm(conv(x, edges[i])))
        x = x if masks is None else x * masks[i].to(x.device).flatten()
    return x
