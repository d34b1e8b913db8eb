"""BeGin's graph convolutional network for whole graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.utils.classifier import AdaptiveLinear
from maskcl.compat.begin.utils.cores import Activation, Convolutions, GraphCore, read_out
from maskcl.compat.begin.utils.graph_model import GraphModel
from maskcl.compat.begin.utils.layer_names import convolve
from maskcl.nn.hat.network import HATNetwork

READOUTS = ("mean", "sum", "max", "none")


class GCNGraph(GraphModel):
    """A layer for features, GCN layers, a readout over nodes, an MLP and a classifier.

    Args:
        in_feats, n_classes, n_hidden, activation, dropout, n_layers, incr_type: as for GCNNode.
        n_mlp_layers: layers behind the readout, each with half the outputs of the one before.
        readout: "mean", "sum" or "max" over a graph's nodes, "none" for an output a node.
        node_encoder_fn: makes what takes features to ``n_hidden``, in the place of a linear layer.
        edge_encoder_fn: None; edges have no features here.

    Raises:
        ValueError: the readout is unknown, or there is an edge encoder.
    """

    def __init__(
        self,
        in_feats: int,
        n_classes: int,
        n_hidden: int,
        activation: Activation = F.relu,
        dropout: float = 0.0,
        n_layers: int = 4,
        n_mlp_layers: int = 2,
        incr_type: str = "class",
        readout: str = "mean",
        node_encoder_fn: Callable[[], nn.Module] | None = None,
        edge_encoder_fn: None = None,
    ) -> None:
        super().__init__()
        if readout not in READOUTS:
            raise ValueError(f"GCNGraph: readout is {readout!r}, wanted {', '.join(READOUTS)}")
        if edge_encoder_fn is not None:
            raise ValueError("GCNGraph: edge_encoder_fn is given, wanted None: no edge features")
        self.n_layers, self.n_mlp_layers = n_layers, n_mlp_layers
        self.n_hidden, self.n_classes = n_hidden, n_classes
        self._given_activation = (activation,)
        widths = [n_hidden >> i for i in range(n_mlp_layers + 1)]
        drop = nn.Dropout(dropout)
        self.core = GraphCore(
            nn.Linear(in_feats, n_hidden) if node_encoder_fn is None else node_encoder_fn(),
            Convolutions(n_hidden, n_hidden, n_layers, activation, drop),
            readout,
            widths,
            activation,
            drop,
        )
        self.classifier = AdaptiveLinear(widths[-1], n_classes, accum=incr_type != "task")

    @property
    def enc(self) -> nn.Module:
        """The layer for the features."""
        return self._inside.enc

    @property
    def mlp_layers(self) -> nn.ModuleList:
        """Layers behind the readout."""
        return self._inside.mlp_layers

    @property
    def readout_mode(self) -> str:
        """How a graph's nodes become one row."""
        return self._inside.readout

    def tensors(self, graph: DataGraph, feat: Tensor) -> tuple[Any, ...]:
        """Arguments of the core; features [N] are [N, 1]."""
        sizes = graph.batch_num_nodes().to(feat.device)
        index = torch.repeat_interleave(torch.arange(len(sizes), device=feat.device), sizes)
        feat = feat.unsqueeze(-1) if feat.dim() == 1 else feat
        return feat, graph.adjacency(self.adjacency, feat.device), index, len(sizes)

    def forward(
        self,
        graph: DataGraph,
        feat: Tensor,
        task_masks: Tensor | None = None,
        edge_weight: None = None,
        edge_attr: None = None,
        get_intermediate_outputs: bool = False,
    ) -> Any:
        """[N, F] of a batch of B graphs -> [B, C]; ``task_masks`` bool [B, C].

        Args:
            graph: several in one.
            feat: of their nodes.
            task_masks: classes that may answer.
            edge_weight: None.
            edge_attr: None.
            get_intermediate_outputs: return (logits, what is behind each convolution [N, hidden],
                and last what goes into the classifier).

        Raises:
            ValueError: edges have weights or features.
        """
        tensors = self._checked(graph, feat, edge_weight, edge_attr)
        if not get_intermediate_outputs:
            return self.logits(tensors, task_masks)
        inside = self._inside
        out, between = self._seen(tensors, inside.nodes.after, [inside.head])
        return self._let_through(out, task_masks), between

    def forward_hat(
        self,
        graph: DataGraph,
        feat: Tensor,
        hat_masks: Sequence[Tensor],
        task_masks: Tensor | None = None,
        edge_weight: None = None,
        edge_attr: None = None,
    ) -> Tensor:
        """As `forward`, each layer's output times its mask: the first, the convolutions, the MLP.

        In a network of HAT's these masks are in the place of its own.
        """
        tensors = self._checked(graph, feat, edge_weight, edge_attr)
        if isinstance(self.core, HATNetwork):
            return self._let_through(self._under(hat_masks, tensors), task_masks)
        core, (x, edges, index, count) = self._inside, tensors
        first, *masks = (mask.to(x.device).flatten() for mask in hat_masks)
        layers = len(core.nodes.convs)
        # Dropout comes behind this mask: it keeps elements or makes them 0, as the mask does.
        h = convolve(core.nodes, [edges] * layers, core.enc(x) * first, masks)
        h = read_out(core.readout, h, index, count)
        for linear, after, mask in zip(core.mlp_layers, core.after, masks[layers:], strict=True):
            h = after(linear(h)) * mask
        return self._let_through(core.head(h), task_masks)

    def forward_without_classifier(
        self,
        graph: DataGraph,
        feat: Tensor,
        task_masks: Tensor | None = None,
        edge_weight: None = None,
        edge_attr: None = None,
    ) -> Tensor:
        """What the convolutions give of every node, [N, hidden]: as BeGin has it, no readout."""
        tensors = self._checked(graph, feat, edge_weight, edge_attr)
        return self._seen(tensors, [self._nodes])[1][0]

    def _checked(
        self, graph: DataGraph, feat: Tensor, edge_weight: Any, edge_attr: Any
    ) -> tuple[Any, ...]:
        if edge_weight is not None or edge_attr is not None:
            raise ValueError("GCNGraph: edge_weight or edge_attr is given, wanted None")
        return self.tensors(graph, feat)
