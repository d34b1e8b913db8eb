"""DGI, GraphCL and InfoGraph."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.compat.begin import data
from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.utils.pretraining_method import PretrainingMethod
from maskcl.compat.begin.utils.subgraphs import nearby


class DGI(PretrainingMethod):
    """Deep graph infomax (Velickovic et al. 2019): tell nodes from those of shuffled features.

    Args:
        encoder: as for all methods, with ``forward_without_classifier``.
        link_level: whether it is of links: then the graph's edges are its pairs.
    """

    class Discriminator(nn.Module):
        """How well rows go with a summary, h W s.

        Args:
            n_hidden: of both.
        """

        def __init__(self, n_hidden: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(n_hidden, n_hidden))
            self.reset_parameters()

        def reset_parameters(self) -> None:
            """Draw the weights, `uniform` by their size."""
            self.uniform(len(self.weight), self.weight)

        def uniform(self, size: int, tensor: Tensor) -> None:
            """Fill a tensor uniformly in +-1 / sqrt(size)."""
            nn.init.uniform_(tensor, -1 / math.sqrt(size), 1 / math.sqrt(size))

        def forward(self, features: Tensor, summary: Tensor) -> Tensor:
            """[n, n_hidden], [n_hidden] -> [n]."""
            return features @ (self.weight @ summary)

    def __init__(self, encoder: Any, link_level: bool = True) -> None:
        super().__init__(encoder)
        self.discriminator = self.Discriminator(encoder.n_hidden)
        self.loss_fn = nn.BCEWithLogitsLoss()
        self.link_level = link_level

    def inference(self, inputs: DataGraph) -> Tensor:
        """The loss of a graph's rows under its own summary."""
        true, false = self._true_and_false(inputs)
        return self._told_apart(true, false, torch.sigmoid(true.mean(0)))

    def _true_and_false(self, graph: DataGraph) -> tuple[Tensor, Tensor]:
        features = graph.ndata["feat"]
        shuffled = features[torch.randperm(len(features)).to(features.device)]
        return self._encoded(graph, features), self._encoded(graph, shuffled)

    def _encoded(self, graph: DataGraph, features: Tensor) -> Tensor:
        pairs = graph.edges() if self.link_level else ()
        return self.encoder.forward_without_classifier(graph, features, *pairs)

    def _told_apart(self, true: Tensor, false: Tensor, summary: Tensor) -> Tensor:
        scores = [self.discriminator(rows, summary) for rows in (true, false)]
        yes, no = torch.ones_like(scores[0]), torch.zeros_like(scores[1])
        return self.loss_fn(scores[0], yes) + self.loss_fn(scores[1], no)


class DGISubgraphCL(DGI):
    """GraphCL with subgraphs (You et al. 2020), for nodes and links: DGI under parts' summaries."""

    def do_augmentation(self, graph: DataGraph) -> DataGraph:
        """Four fifths of the nodes, around a drawn one."""
        return data.part_of(graph, nearby(graph, 0.8))

    def inference(self, inputs: DataGraph) -> Tensor:
        """The loss of a graph's rows under the summaries of two drawn parts."""
        true, false = self._true_and_false(inputs)
        losses = []
        for _ in range(2):
            part = self.do_augmentation(inputs)
            summary = torch.sigmoid(self._encoded(part, part.ndata["feat"]).mean(0))
            losses.append(self._told_apart(true, false, summary))
        return losses[0] + losses[1]


class SubgraphCL(PretrainingMethod):
    """GraphCL with subgraphs (You et al. 2020), for whole graphs: a part goes with its graph."""

    def do_augmentation(self, graph: DataGraph) -> DataGraph:
        """Four fifths of the nodes, around a drawn one."""
        return data.part_of(graph, nearby(graph, 0.8))

    def inference(self, inputs: DataGraph) -> Tensor:
        """The loss of a batch of graphs."""
        parts = data.batch([self.do_augmentation(graph) for graph in data.unbatch(inputs)])
        whole, part = (
            self.encoder(graph, graph.ndata["feat"], get_intermediate_outputs=True)[1][-1]
            for graph in (inputs, parts.to(inputs.device))
        )
        return torch.logsumexp(part @ whole.T, dim=-1).mean() - (part * whole).sum(-1).mean()


class InfoGraph(PretrainingMethod):
    """InfoGraph (Sun et al. 2020): nodes go with their own graph.

    Args:
        encoder: a GCNGraph.
    """

    class FeedforwardNetwork(nn.Module):
        """Three layers, and one beside them.

        Args:
            in_dim, hid_dim, out_dim: of them.
        """

        def __init__(self, in_dim: int, hid_dim: int, out_dim: int) -> None:
            super().__init__()
            self.block = nn.Sequential(
                nn.Linear(in_dim, hid_dim),
                nn.ReLU(),
                nn.Linear(hid_dim, hid_dim),
                nn.ReLU(),
                nn.Linear(hid_dim, out_dim),
            )
            self.jump_con = nn.Linear(in_dim, out_dim)

        def forward(self, feat: Tensor) -> Tensor:
            """[n, in_dim] -> [n, out_dim]."""
            return self.block(feat) + self.jump_con(feat)

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder)
        width = encoder.n_hidden
        out = width // (1 << encoder.n_mlp_layers)
        self.local_d = self.FeedforwardNetwork(width * encoder.n_layers, width, out)

    def get_positive_expectation(self, p_samples: Tensor, average: bool = True) -> Tensor:
        """Of pairs that go together, in the Jensen-Shannon estimate; their mean, or each."""
        found = math.log(2.0) - F.softplus(-p_samples)
        return found.mean() if average else found

    def get_negative_expectation(self, q_samples: Tensor, average: bool = True) -> Tensor:
        """Of pairs that do not."""
        found = F.softplus(-q_samples) + q_samples - math.log(2.0)
        return found.mean() if average else found

    def local_global_loss_(self, l_enc: Tensor, g_enc: Tensor, graph_id: Tensor) -> Tensor:
        """The negative estimate.

        Args:
            l_enc: [N, d], of nodes.
            g_enc: [B, d], of graphs; with one alone no pair is of two.
            graph_id: int64 [N], each node's graph.
        """
        scores = l_enc @ g_enc.T
        own = F.one_hot(graph_id.to(scores.device), len(g_enc)).bool()
        together = self.get_positive_expectation(scores[own])
        if len(g_enc) == 1:
            return -together
        return self.get_negative_expectation(scores[~own]) - together

    def inference(self, inputs: DataGraph) -> Tensor:
        """The loss of a batch of graphs."""
        feat = inputs.ndata["feat"]
        _, (*between, last) = self.encoder(inputs, feat, get_intermediate_outputs=True)
        sizes = inputs.batch_num_nodes()
        graph_id = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        return self.local_global_loss_(self.local_d(torch.cat(between, dim=-1)), last, graph_id)
