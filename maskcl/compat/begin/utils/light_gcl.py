"""LightGCL, for graphs of two kinds of nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.utils.layer_names import Convolution
from maskcl.compat.begin.utils.pretraining_method import PretrainingMethod


class LightGCL(PretrainingMethod):
    """LightGCL (Cai et al. 2023): rows of the graph go with those of its truncated SVD.

    Args:
        encoder: a GCNNode, or with ``link_level`` a GCNLink.
        link_level: whether it is of links.
        bipartite: whether edges join nodes of two kinds, those of the first having the lower
            numbers; with ``link_level``.

    Attributes:
        batch_size: links, or nodes, a step.
        svd_u, svd_s, svd_v: of the edges, five singular values; None before the first epoch.
    """

    class PretrainIterator(PretrainingMethod.PretrainIterator):
        """What an epoch goes through: the graph and some samples at a time, in a drawn order."""

        def __init__(self, inputs: Any, batch_size: int, samples: Tensor, device: Any) -> None:
            super().__init__(inputs, device)
            self.samples = samples[torch.randperm(len(samples))]
            self.batch_size = batch_size

        def __next__(self) -> Any:
            start = self.count * self.batch_size
            if start >= len(self.samples):
                raise StopIteration
            self.count += 1
            chosen = self.samples[start : start + self.batch_size]
            return self.inputs.to(self.device), chosen.to(self.device)

    RANK = 5

    def __init__(self, encoder: Any, link_level: bool = True, bipartite: bool = False) -> None:
        super().__init__(encoder)
        self.link_level, self.bipartite = link_level, bipartite
        self.batch_size = 4096
        self.svd_u: Tensor | None = None
        self.svd_s: Tensor | None = None
        self.svd_v: Tensor | None = None

    @property
    def target_module(self) -> Any:
        """What has the convolutions."""
        return self.encoder.gcn if self.link_level else self.encoder

    def exact_forward(self, graph: DataGraph, feats: Tensor) -> Tensor:
        """What is behind each convolution, summed, [N, hidden]."""
        return self._summed(feats, lambda conv, h: conv(graph, h))

    def approx_forward(self, graph: DataGraph, feats: Tensor) -> Tensor:
        """As `exact_forward`, by the truncated SVD in the place of the edges."""
        return self._summed(feats, lambda conv, h: self.approx_conv(conv, graph, h))

    def approx_conv(self, conv: Convolution, graph: DataGraph, feat: Tensor) -> Tensor:
        """A convolution by the truncated SVD; every node hears itself too."""
        assert self.svd_u is not None and self.svd_s is not None and self.svd_v is not None
        u, s, v = (t.to(feat) for t in (self.svd_u, self.svd_s, self.svd_v))
        loops = int(graph.loops)
        leaving, ending = (
            (degrees + loops).clamp(min=1).to(feat).rsqrt().unsqueeze(1)
            for degrees in (graph.out_degrees(), graph.in_degrees())
        )
        h = (feat * leaving) @ conv.weight
        if self._two_kinds:
            first, second = h[: self.num_srcs], h[self.num_srcs :]
            heard = torch.cat([u @ (s[:, None] * (v.T @ second)), v @ (s[:, None] * (u.T @ first))])
        else:
            heard = u @ (s[:, None] * (v.T @ h))
        return (heard + h) * ending

    def iterator(self, inputs: DataGraph, device: Any) -> Any:
        """The graph with its links, or its nodes, some at a time."""
        sources, targets = inputs.edges()
        kept = sources < targets if self._two_kinds else sources != targets
        sources, targets = sources[kept], targets[kept]
        count = inputs.num_nodes()
        # The first kind's nodes are those that links begin in.
        self.num_srcs = int(sources.max()) + 1 if self._two_kinds else 0
        if self._two_kinds and int(targets.min()) < self.num_srcs:
            node = int(targets.min())
            raise ValueError(
                f"LightGCL: bipartite is True, and links begin in node {self.num_srcs - 1} and end"
                f" in node {node}, wanted ends behind all beginnings"
            )
        if self.svd_s is None:
            rows, columns = self.num_srcs or count, count - self.num_srcs
            places = torch.stack([sources, targets - self.num_srcs])
            ones = torch.ones(len(sources))
            matrix = torch.sparse_coo_tensor(places, ones, (rows, columns), check_invariants=True)
            rank = min(self.RANK, rows, columns)
            self.svd_u, self.svd_s, self.svd_v = torch.svd_lowrank(matrix, q=rank)
        links = torch.stack([sources, targets], dim=1)
        samples = links if self._two_kinds else torch.arange(count)
        return self.PretrainIterator(inputs, self.batch_size, samples, device)

    def inference(self, inputs: tuple[DataGraph, Tensor]) -> Tensor:
        """The loss of a graph's samples: own rows go together, all others of their kind do not."""
        graph, samples = inputs
        feats = graph.ndata["feat"]
        exact, approx = self.exact_forward(graph, feats), self.approx_forward(graph, feats)
        if not self._two_kinds:
            return _contrast(approx, exact, exact, samples)
        first, second = exact[: self.num_srcs], exact[self.num_srcs :]
        loss = _contrast(approx, exact, first, samples[:, 0])
        return loss + _contrast(approx, exact, second, samples[:, 1])

    @property
    def _two_kinds(self) -> bool:
        return self.bipartite and self.link_level

    def _summed(self, feats: Tensor, convolve: Any) -> Tensor:
        part = self.target_module
        h, total = part.dropout(feats), feats.new_zeros(())
        for conv, norm in zip(part.convs, part.norms, strict=True):
            h = part.activation(norm(convolve(conv, h)))
            total = total + h
            h = part.dropout(h)
        return total


def _contrast(approx: Tensor, exact: Tensor, others: Tensor, rows: Tensor) -> Tensor:
    """Rows of ``approx`` with their own of ``exact``, against all ``others``."""
    apart = torch.logsumexp(approx[rows] @ others.T, dim=-1).mean()
    return apart - (approx[rows] * exact[rows]).sum(-1).mean()
