"""Small graphs with features and arguments of graph models made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.graph import Graph
from maskcl.models import ENCODERS, build_graph
from maskcl.problems.graphs import merge

FEATURES = 6


def graph(nodes: int = 9, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Graph:
    """Undirected, with bags of words of about a third of the words, and a node without edges."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(nodes, FEATURES, generator=generator) < 0.35).to(dtype)
    pairs = torch.randint(0, max(nodes - 1, 1), (2, 2 * nodes), generator=generator)
    pairs = pairs[:, pairs[0] != pairs[1]]
    return Graph(x, torch.cat([pairs, pairs.flip(0)], 1).unique(dim=1))


def model(problem: str, encoder: str, classes: int = 3, **options: Any) -> nn.Module:
    """From seed 0, with two layers and hidden biases that are not 0."""
    torch.manual_seed(0)
    options = {"hidden": (8, 8), **options}
    net = build_graph(problem, encoder, FEATURES, classes, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def inputs(
    problem: str, encoder: str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    """Arguments of that model's forward: five nodes, five pairs, or five graphs."""
    kind = ENCODERS[encoder]
    if problem == "graph":
        whole, index = merge([graph(n, seed=seed + n, dtype=dtype) for n in (4, 1, 6, 3, 5)])
        return whole.x, whole.edges(kind), index, 5
    whole = graph(seed=seed, dtype=dtype)
    nodes = torch.tensor([0, 3, 8, 2, 5])
    asked = nodes if problem == "node" else torch.stack([nodes, nodes.roll(1)], 1)
    return whole.x, whole.edges(kind), asked


def sparse(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments with the features in CSR."""
    x: Tensor = args[0]
    return x.to_sparse_csr(), *args[1:]
