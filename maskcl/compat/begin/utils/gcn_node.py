"""BeGin's graph convolutional network for nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.compat.begin.data import Block, DataGraph
from maskcl.compat.begin.utils.classifier import AdaptiveLinear
from maskcl.compat.begin.utils.cores import Activation, Convolutions, NodeCore
from maskcl.compat.begin.utils.graph_model import GraphModel
from maskcl.compat.begin.utils.layer_names import convolve, graph_of
from maskcl.nn.hat.network import HATNetwork

Blocks = Sequence[Block | DataGraph]


class GCNNode(GraphModel):
    """GCN layers and a classifier for every node.

    Args:
        in_feats: features of a node, F.
        n_classes: C.
        n_hidden: of each layer.
        activation: a function of a tensor, or a module.
        dropout: of the features and behind each layer.
        n_layers: how many.
        incr_type: with "task" the classes of a task's mask are its own.
        use_classifier: False: features come out.
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
        use_classifier: bool = True,
    ) -> None:
        super().__init__()
        self.n_layers, self.n_hidden, self.n_classes = n_layers, n_hidden, n_classes
        self._given_activation = (activation,)
        drop = nn.Dropout(dropout)
        self.core = NodeCore(Convolutions(in_feats, n_hidden, n_layers, activation, drop))
        accum = incr_type != "task"
        self.classifier = (
            AdaptiveLinear(n_hidden, n_classes, accum=accum) if use_classifier else None
        )

    def tensors(self, graph: DataGraph | None, feat: Tensor) -> tuple[Any, ...]:
        """Arguments of the core."""
        return feat, self._graph(graph, feat).adjacency(self.adjacency, feat.device)

    def forward(
        self, graph: DataGraph | None, feat: Tensor, task_masks: Tensor | None = None
    ) -> Tensor:
        """[N, F] -> [N, C]; ``task_masks`` bool [N, C], classes that may answer.

        Without a graph every node hears itself alone.
        """
        return self.logits(self.tensors(graph, feat), task_masks)

    def forward_hat(
        self,
        graph: DataGraph | None,
        feat: Tensor,
        hat_masks: Sequence[Tensor],
        task_masks: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, what is behind each layer times its mask, [hidden].

        In a network of HAT's these masks are in the place of its own.
        """
        tensors = self.tensors(graph, feat)
        if isinstance(self.core, HATNetwork):
            return self._let_through(self._under(hat_masks, tensors), task_masks)
        h = convolve(self._nodes, [tensors[1]] * self.n_layers, feat, hat_masks)
        return self._let_through(self._inside.head(h), task_masks)

    def forward_without_classifier(
        self, graph: DataGraph | None, feat: Tensor, task_masks: Tensor | None = None
    ) -> Tensor:
        """[N, F] -> [N, hidden]; ``task_masks`` is without effect."""
        return self.features(self.tensors(graph, feat))

    def bforward(
        self, blocks: Blocks | None, feat: Tensor, task_masks: Tensor | None = None
    ) -> Tensor:
        """As `forward`, each layer over a graph of its own, for the nodes of the last block.

        Args:
            blocks: one a layer, all of the same nodes; None: every node hears itself alone.
            feat: [N, F].
            task_masks: bool [n, C], of the nodes of the last block.
        """
        if blocks is None:
            return self.forward(None, feat, task_masks)
        if (graph := _one_graph(blocks)) is not None:
            out = self._outputs(self.tensors(graph, feat))
        else:
            out = self._inside.head(self._layer_by_layer(blocks, feat))
        return self._let_through(_rows(out, blocks), task_masks)

    def bforward_without_classifier(
        self, blocks: Blocks | None, feat: Tensor, task_masks: Tensor | None = None
    ) -> Tensor:
        """As `bforward`, features [n, hidden] in the place of logits."""
        if blocks is None:
            return self.forward_without_classifier(None, feat)
        if (graph := _one_graph(blocks)) is not None:
            out = self.features(self.tensors(graph, feat))
        else:
            out = self._layer_by_layer(blocks, feat)
        return _rows(out, blocks)

    def _layer_by_layer(self, blocks: Blocks, feat: Tensor) -> Tensor:
        if len(blocks) != self.n_layers:
            raise ValueError(
                f"{type(self).__name__}.bforward: blocks has {len(blocks)} graphs, wanted"
                f" {self.n_layers}, one a layer"
            )
        edges = [self.tensors(graph_of(block), feat)[1] for block in blocks]
        with self._in_a_task():
            return convolve(self._nodes, edges, feat)


def _one_graph(blocks: Blocks) -> DataGraph | None:
    """The graph of all blocks; None where there are several."""
    first = graph_of(blocks[0])
    assert first is not None
    same = all(
        found is not None and found.messages is first.messages for found in map(graph_of, blocks)
    )
    return first if same else None


def _rows(out: Tensor, blocks: Blocks) -> Tensor:
    """The rows that the last block answers for."""
    rows = getattr(blocks[-1], "rows", None)
    return out if rows is None else out[rows.to(out.device)]
