"""Features of nodes as tensors: sparse rows, their order, degrees."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl.graph import csr


def sparse(x: Tensor) -> Tensor:
    """The same [N, F] as sparse CSR: what a bag of words is best kept as."""
    if x.layout == torch.sparse_csr:
        return x
    rows, columns = torch.nonzero(x, as_tuple=True)
    return csr(torch.stack([rows, columns]), x[rows, columns], (x.shape[0], x.shape[1]))


def permuted_rows(x: Tensor, order: Tensor) -> Tensor:
    """``x[order]`` of a dense or sparse CSR [N, F], by int64[N]."""
    if x.layout != torch.sparse_csr:
        return x[order]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    entries = x.to_sparse_coo().coalesce()
    rows, columns = entries.indices()
    return csr(torch.stack([rank[rows], columns]), entries.values(), (x.shape[0], x.shape[1]))


def first_rows(x: Tensor, count: int) -> Tensor:
    """``x[:count]`` of a dense or sparse CSR [N, F]."""
    if x.layout != torch.sparse_csr:
        return x[:count]
    entries = x.to_sparse_coo().coalesce()
    kept = entries.indices()[0] < count
    return csr(entries.indices()[:, kept], entries.values()[kept], (count, x.shape[1]))


DEGREE_BINS = 11


def degrees(pairs: Tensor, num_nodes: int) -> Tensor:
    """float32 [N, 22]: how many links a node has out, and how many in, one-hot by powers of two.

    The 11 bins begin with 0, 1, 3, 7, ... 1023 links.
    """
    counts = torch.stack([pairs[:, end].bincount(minlength=num_nodes) for end in (0, 1)], dim=1)
    starts = 2 ** torch.arange(1, DEGREE_BINS) - 1
    bins = torch.bucketize(counts, starts, right=True)
    return torch.eye(DEGREE_BINS)[bins].flatten(1)


def both_ways(pairs: Tensor, num_nodes: int) -> Tensor:
    """int64 [2, E]: the edges of links int64[n, 2] in both directions, each once, no loop."""
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    keys = torch.cat([pairs[:, 0] * num_nodes + pairs[:, 1], pairs[:, 1] * num_nodes + pairs[:, 0]])
    keys = keys.unique()
    return torch.stack([keys // num_nodes, keys % num_nodes])


def between_first(edge_index: Tensor, count: int) -> Tensor:
    """int64 [2, E']: the edges whose ends are both below ``count``."""
    return edge_index[:, (edge_index < count).all(dim=0)]
