"""BeGin's graph convolutional network for links."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.compat.begin.data import DataGraph, without_edges
from maskcl.compat.begin.utils.classifier import AdaptiveLinear
from maskcl.compat.begin.utils.cores import Activation, Convolutions, LinkCore
from maskcl.compat.begin.utils.graph_model import GraphModel
from maskcl.compat.begin.utils.layer_names import LayerNames, convolve
from maskcl.nn.hat.network import HATNetwork


class GCNLink(GraphModel):
    """GCN layers, the Hadamard product of a pair's rows, an MLP and a classifier.

    Args:
        in_feats, n_classes, n_hidden, activation, n_layers, incr_type: as for GCNNode; the MLP
            has ``n_layers - 1`` layers.
        dropout: of the product and of the MLP; the convolutions have none.
    """

    def __init__(
        self,
        in_feats: int,
        n_classes: int,
        n_hidden: int,
        activation: Activation = F.relu,
        dropout: float = 0.0,
        n_layers: int = 3,
        incr_type: str = "class",
    ) -> None:
        super().__init__()
        self.n_layers, self.n_hidden, self.n_classes = n_layers, n_hidden, n_classes
        self._given_activation = (activation,)
        nodes = Convolutions(in_feats, n_hidden, n_layers, activation, nn.Dropout(0.0))
        self.core = LinkCore(nodes, n_hidden, n_layers - 1, activation, nn.Dropout(dropout))
        self.classifier = AdaptiveLinear(n_hidden, n_classes, accum=incr_type != "task")

    @property
    def gcn(self) -> NodeEncoder:
        """The convolutions by themselves."""
        return NodeEncoder(self)

    @property
    def linears(self) -> nn.ModuleList:
        """Layers of the MLP."""
        return self._inside.linears

    @property
    def dropout(self) -> nn.Dropout:
        """The one of the product and of the MLP."""
        return self._inside.dropout

    def tensors(
        self, graph: DataGraph | None, feat: Tensor, srcs: Tensor, dsts: Tensor
    ) -> tuple[Any, ...]:
        """Arguments of the core."""
        pairs = torch.stack([srcs, dsts], dim=1).to(feat.device)
        return feat, self._graph(graph, feat).adjacency(self.adjacency, feat.device), pairs

    def forward(
        self,
        graph: DataGraph | None,
        feat: Tensor,
        srcs: Tensor,
        dsts: Tensor,
        task_masks: Tensor | None = None,
    ) -> Tensor:
        """[N, F], pairs int64 [n] and [n] -> [n, C]; ``task_masks`` bool [n, C].

        Without a graph every node hears itself alone.
        """
        return self.logits(self.tensors(graph, feat, srcs, dsts), task_masks)

    def forward_hat(
        self,
        graph: DataGraph | None,
        feat: Tensor,
        srcs: Tensor,
        dsts: Tensor,
        hat_masks: Sequence[Tensor] | None = None,
        task_masks: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, what is behind each layer times its mask: convolutions, then the MLP.

        In a network of HAT's these masks are in the place of its own.
        """
        tensors = self.tensors(graph, feat, srcs, dsts)
        if hat_masks is None:
            return self.logits(tensors, task_masks)
        if isinstance(self.core, HATNetwork):
            return self._let_through(self._under(hat_masks, tensors), task_masks)
        core, (_, edges, pairs) = self._inside, tensors
        h = convolve(core.nodes, [edges] * len(core.nodes.convs), feat, hat_masks)
        h = core.dropout(h[pairs[:, 0]] * h[pairs[:, 1]])
        masks = hat_masks[len(core.nodes.convs) :]
        for linear, after, mask in zip(core.linears, core.after, masks, strict=True):
            h = after(linear(h)) * mask.to(h.device).flatten()
        return self._let_through(core.head(h), task_masks)

    def forward_without_classifier(
        self,
        graph: DataGraph | None,
        feat: Tensor,
        srcs: Tensor,
        dsts: Tensor,
        task_masks: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, what the MLP gives, [n, hidden]; ``task_masks`` is without effect."""
        return self.features(self.tensors(graph, feat, srcs, dsts))


class NodeEncoder(LayerNames):
    """The convolutions of a GCNLink as a network of its nodes.

    Args:
        model: the GCNLink; what is changed here is changed there.
    """

    def __init__(self, model: GCNLink) -> None:
        self._model, self._given_activation = model, (model.activation,)
        self.n_layers, self.n_hidden = model.n_layers, model.n_hidden
        self.classifier = None

    @property
    def _inside(self) -> Any:
        return self._model._inside

    def __call__(
        self, graph: DataGraph | None, feat: Tensor, task_masks: Tensor | None = None
    ) -> Tensor:
        """[N, F] -> [N, hidden]; ``task_masks`` is without effect."""
        edges = (graph or without_edges(len(feat))).adjacency(self._model.adjacency, feat.device)
        if not isinstance(self._model.core, HATNetwork):
            with self._model._in_a_task():
                return self._nodes(feat, edges)
        pair = torch.zeros(1, 2, dtype=torch.int64, device=feat.device)
        return self._model._seen((feat, edges, pair), [self._nodes])[1][0]

    forward_without_classifier = __call__
