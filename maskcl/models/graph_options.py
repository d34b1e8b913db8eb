"""What a graph model may be asked for, and what it is called with; needs no torch_geometric."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl.graph import Graph

ENCODERS = {"gcn": "gcn", "sage": "mean", "gin": "sum", "gat": "index"}
"""Graph encoders, and the kind of ``Graph.edges`` that each takes."""
GRAPH_PROBLEMS = ("node", "link", "graph")
READOUTS = ("mean", "sum", "max")


def example_inputs(problem: str, adjacency: str, features: int) -> tuple[Tensor | int, ...]:
    """Arguments of a graph model's forward, of three nodes: what ``to_hat`` traces it with.

    Args:
        problem: one of ``GRAPH_PROBLEMS``.
        adjacency: the encoder's: ``index`` for edges int64 [2, 4], another for sparse CSR [3, 3].
        features: F.

    Raises:
        ValueError: an argument is unknown.
    """
    x = torch.zeros(3, features)
    edges = Graph(x, torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])).edges(adjacency)
    if problem == "node":
        return x, edges, torch.tensor([0, 2])
    if problem == "link":
        return x, edges, torch.tensor([[0, 1], [2, 0]])
    if problem == "graph":
        return x, edges, torch.tensor([0, 0, 1]), 2
    raise ValueError(f"problem is {problem!r}, wanted one of {', '.join(GRAPH_PROBLEMS)}")
