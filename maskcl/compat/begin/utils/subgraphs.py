"""Parts of a graph, drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph


def nearby(graph: DataGraph, share: float) -> Tensor:
    """A share of the nodes, int64 [n]: those that the fewest edges part from a drawn one.

    Of nodes as far away as each other those that chance prefers; where a component ends, another
    one's drawn node is the next. Chance is torch's generator.

    Args:
        graph: edges count in both directions.
        share: of the nodes; at least one is taken.
    """
    count = graph.num_nodes()
    wanted = max(1, int(count * share))
    source, target = graph.messages.edge_index
    hops = torch.full((count,), count)
    start = int(torch.randint(count, ()))
    hops[start], hop, reached = 0, 0, 1
    while reached < wanted:
        hop += 1
        edge = hops[source] < hop
        back = hops[target] < hop
        next_to = torch.cat([target[edge], source[back]])
        hops[next_to[hops[next_to] > hop]] = hop
        found = int((hops < count).sum())
        if found == reached:
            others = torch.nonzero(hops == count).flatten()
            hops[others[torch.randint(len(others), ())]] = hop
            found += 1
        reached = found
    order = (hops * count + torch.randperm(count)).argsort()
    return order[:wanted].sort().values
