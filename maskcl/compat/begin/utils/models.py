"""BeGin's graph convolutional networks for nodes, links and graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.utils.classifier import AdaptiveLinear
from maskcl.compat.begin.utils.cores import (
    Activation,
    Convolutions,
    GraphCore,
    LinkCore,
    NodeCore,
    layers,
)
from maskcl.nn.tasks.network import TaskNetwork

READOUTS = ("mean", "sum", "max", "none")


class GraphModel(nn.Module):
    """Base of the models: unpacks a graph, runs the core, masks the logits.

    Attributes:
        core: takes tensors alone, so that it can be converted; ``core.head`` is ``nn.Identity``.
            Once converted it is a network of maskcl's, which has the output layers in it.
        classifier: None where there is none.
        adjacency: the kind of edges that the core takes (``maskcl.graph.Graph.edges``).
    """

    core: Any
    classifier: AdaptiveLinear | None
    adjacency: str = "gcn"

    def logits(self, tensors: tuple[Any, ...], task_masks: Tensor | None) -> Tensor:
        """The core's outputs, as the classifier lets them through.

        A converted model outside ``with model.task(k):`` answers for the latest task begun.
        """
        if isinstance(self.core, TaskNetwork) and self.core._state.task is None:
            with self.core.task(self._latest):
                out = self.core(*tensors)
        else:
            out = self.core(*tensors)
        return out if self.classifier is None else self.classifier(out, task_masks)

    def observe_labels(self, new_labels: Tensor, verbose: bool = True) -> None:
        """See `AdaptiveLinear.observe_outputs`."""
        self._classifier().observe_outputs(new_labels, verbose)

    def get_observed_labels(self, tid: int | None = None) -> Tensor:
        """Classes observed so far, bool [C]; or by task ``tid``."""
        head = self._classifier()
        return head.observed if tid is None or tid < 0 else head.output_masks[tid]

    def converted(self, convert: Callable[[nn.Module], TaskNetwork]) -> Any:
        """A copy whose core, output layer included, is what ``convert`` makes of it."""
        model = copy.deepcopy(self)
        model.core.head = model._classifier().lin
        model._classifier().lin = nn.Identity()
        model.core = convert(model.core)
        return model

    @contextmanager
    def task(self, index: int, scale: Tensor | None = None) -> Iterator[None]:
        """Make a task active in a converted model; nothing in another."""
        if not isinstance(self.core, TaskNetwork):
            yield
            return
        with self.core.task(index, scale):
            yield

    _latest = 0

    def begin_task(self, index: int) -> None:
        """Which task is the latest."""
        self._latest = index

    def _classifier(self) -> AdaptiveLinear:
        if self.classifier is None:
            raise RuntimeError(f"{type(self).__name__}: use_classifier is False: no classes here")
        return self.classifier


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
        self.core = NodeCore(Convolutions(in_feats, n_hidden, n_layers, activation, dropout))
        accum = incr_type != "task"
        self.classifier = (
            AdaptiveLinear(n_hidden, n_classes, accum=accum) if use_classifier else None
        )

    def tensors(self, graph: DataGraph, feat: Tensor) -> tuple[Any, ...]:
        """Arguments of the core."""
        return feat, graph.adjacency(self.adjacency, feat.device)

    def forward(self, graph: DataGraph, feat: Tensor, task_masks: Tensor | None = None) -> Tensor:
        """[N, F] -> [N, C]; ``task_masks`` bool [N, C], classes that may answer."""
        return self.logits(self.tensors(graph, feat), task_masks)


class GCNLink(GraphModel):
    """GCN layers, the Hadamard product of a pair's rows, an MLP and a classifier.

    Args:
        in_feats, n_classes, n_hidden, activation, n_layers, incr_type: as for GCNNode; the MLP
            has ``n_layers - 1`` layers.
        dropout: of the MLP; the convolutions have none.
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
        self.core = LinkCore(
            Convolutions(in_feats, n_hidden, n_layers, activation, 0.0),
            layers([n_hidden] * n_layers, activation, dropout),
        )
        self.classifier = AdaptiveLinear(n_hidden, n_classes, accum=incr_type != "task")

    def tensors(
        self, graph: DataGraph, feat: Tensor, srcs: Tensor, dsts: Tensor
    ) -> tuple[Any, ...]:
        """Arguments of the core."""
        pairs = torch.stack([srcs, dsts], dim=1).to(feat.device)
        return feat, graph.adjacency(self.adjacency, feat.device), pairs

    def forward(
        self,
        graph: DataGraph,
        feat: Tensor,
        srcs: Tensor,
        dsts: Tensor,
        task_masks: Tensor | None = None,
    ) -> Tensor:
        """[N, F], pairs int64 [n] and [n] -> [n, C]; ``task_masks`` bool [n, C]."""
        return self.logits(self.tensors(graph, feat, srcs, dsts), task_masks)


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
        widths = [n_hidden >> i for i in range(n_mlp_layers + 1)]
        self.core = GraphCore(
            nn.Linear(in_feats, n_hidden) if node_encoder_fn is None else node_encoder_fn(),
            Convolutions(n_hidden, n_hidden, n_layers, activation, dropout),
            readout,
            layers(widths, activation, dropout),
        )
        self.classifier = AdaptiveLinear(widths[-1], n_classes, accum=incr_type != "task")

    def tensors(self, graph: DataGraph, feat: Tensor) -> tuple[Any, ...]:
        """Arguments of the core."""
        sizes = graph.batch_num_nodes().to(feat.device)
        index = torch.repeat_interleave(torch.arange(len(sizes), device=feat.device), sizes)
        return feat, graph.adjacency(self.adjacency, feat.device), index, len(sizes)

    def forward(
        self,
        graph: DataGraph,
        feat: Tensor,
        task_masks: Tensor | None = None,
        edge_weight: None = None,
        edge_attr: None = None,
    ) -> Tensor:
        """[N, F] of a batch of B graphs -> [B, C]; ``task_masks`` bool [B, C].

        Raises:
            ValueError: edges have weights or features.
        """
        if edge_weight is not None or edge_attr is not None:
            raise ValueError("GCNGraph: edge_weight or edge_attr is given, wanted None")
        return self.logits(self.tensors(graph, feat), task_masks)
