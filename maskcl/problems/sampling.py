"""What graph problems draw: a part of the neighbourhood of some nodes, and pairs that are no links.

Plain torch, no loop over nodes; every draw comes from the generator that is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl.graph import Graph, csr


class SampledGraph(Graph):
    """A drawn part of a graph, whose edges stand for all edges of their receiver.

    ``edges("sum")`` and ``edges("gcn")`` weigh each of k edges drawn from d by d / k, and take
    degrees of the whole graph, so that a sum over neighbours has the whole graph's as its mean:
    what is trained on parts is tested on the whole. ``mean`` needs no weight.

    Args:
        x: [N, F], as for `Graph`.
        edge_index: int64 [2, E].
        weight: [E], d / k of each edge's receiver.
        degree: [N], in-degree in the whole graph with one loop a node (``gcn``'s).
    """

    def __init__(self, x: Tensor, edge_index: Tensor, weight: Tensor, degree: Tensor) -> None:
        super().__init__(x, edge_index)
        self._weight, self._scale = weight.to(x.dtype), degree.to(x.dtype).rsqrt()

    def edges(self, kind: str) -> Tensor:
        """As `Graph.edges`; made once."""
        if kind in ("sum", "gcn") and kind not in self._kept:
            self._kept[kind] = self._estimate(kind)
        return super().edges(kind)

    def _estimate(self, kind: str) -> Tensor:
        (source, target), weight = self.edge_index, self._weight
        if kind == "gcn":
            other, nodes = source != target, torch.arange(self.num_nodes)
            source, target = torch.cat([source[other], nodes]), torch.cat([target[other], nodes])
            weight = torch.cat([weight[other], weight.new_ones(len(nodes))])
            weight = weight * self._scale[source] * self._scale[target]
        return csr(torch.stack([target, source]), weight, (self.num_nodes, self.num_nodes))


def sample_subgraph(
    graph: Graph, seeds: Tensor, fanouts: Sequence[int], generator: torch.Generator | None
) -> tuple[SampledGraph, Tensor]:
    """Seeds with a sample of their neighbourhood (GraphSAGE: Hamilton et al. 2017, algorithm 2).

    Hop h draws ``fanouts[h]`` in-neighbours, uniformly and without replacement, of each node that
    hop h - 1 found first (hop 0: of the seeds); all of them where there are no more. A network
    with as many layers as there are fanouts uses no other node for the seeds.

    Args:
        graph: on the CPU.
        seeds: int64 [n], n at least 1.
        fanouts: for each hop at least 1, or -1 for all: the seeds' outputs then equal those on
            the whole graph.
        generator: a CPU generator, of which the draws are; the global one is never used.

    Returns:
        The nodes met and the edges drawn, numbered anew; and each seed's number there, int64 [n].

    Raises:
        TypeError, ValueError: an argument is not as above, or there is no generator.
    """
    _check_seeds(seeds, graph.num_nodes)
    _check_fanouts(fanouts)
    generator = _own("sample_subgraph", generator)
    offsets, senders = graph.incoming
    number = torch.full((graph.num_nodes,), -1)
    nodes, edges, weights = [seeds.unique()], [], []
    number[nodes[0]] = torch.arange(len(nodes[0]))
    count = len(nodes[0])
    for fanout in fanouts:
        receivers = nodes[-1]
        first, degree = offsets[receivers], offsets[receivers + 1] - offsets[receivers]
        place, which = _draw(first, degree, fanout, generator)
        source = senders[place]
        new = source[number[source] < 0].unique()
        number[new] = torch.arange(count, count + len(new))
        count += len(new)
        nodes.append(new)
        edges.append(torch.stack([source, receivers[which]]))
        drawn = degree if fanout < 0 else degree.clamp(max=fanout)
        weights.append(degree[which].double() / drawn[which])
    kept = torch.cat(nodes)
    part = SampledGraph(
        rows(graph.x, kept), number[torch.cat(edges, 1)], torch.cat(weights), graph.degree[kept]
    )
    return part, number[seeds]


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows int64 [n] of a matrix [N, F], dense or sparse CSR; in the matrix's own layout."""
    if x.layout == torch.strided:
        return x[index]
    start, columns = x.crow_indices(), x.col_indices()
    first, count = start[index], start[index + 1] - start[index]
    place, _ = _ranges(first, count)
    ends = torch.cat([count.new_zeros(1), count.cumsum(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Sparse CSR.*")
        return torch.sparse_csr_tensor(
            ends,
            columns[place],
            x.values()[place],
            (len(index), x.shape[1]),
            check_invariants=False,
        )


def draw_negatives(
    pairs: Tensor, known: Tensor, num_nodes: int, generator: torch.Generator | None
) -> Tensor:
    """For each pair one with the same source that is no link, its target uniform among such.

    A pair is a link where ``known`` or ``pairs`` has it in either direction: an encoder's scores
    are symmetric. Never a node with itself. Targets are drawn among all nodes; where links join
    nodes of two kinds only (users and items), draw targets among the other kind yourself.

    Args:
        pairs: int64 [n, 2].
        known: int64 [2, K].
        num_nodes: N.
        generator: a CPU generator; one number is drawn for each pair.

    Returns:
        int64 [n, 2].

    Raises:
        ValueError: a source is linked with every other node.
        TypeError: there is no generator.
    """
    generator = _own("draw_negatives", generator)
    sources, local = pairs[:, 0].unique(return_inverse=True)
    links = torch.cat([known, known.flip(0), pairs.T, pairs.T.flip(0)], dim=1)
    row = torch.full((num_nodes,), -1)
    row[sources] = torch.arange(len(sources))
    links = links[:, row[links[0]] >= 0]
    itself = torch.arange(len(sources)) * num_nodes + sources
    # One sorted key for each (source, node that is no target).
    key = torch.cat([row[links[0]] * num_nodes + links[1], itself]).unique()
    of, node = key // num_nodes, key % num_nodes
    taken = torch.bincount(of, minlength=len(sources))
    start = taken.cumsum(0) - taken
    if bool((taken == num_nodes).any()):
        full = int(sources[taken == num_nodes][0])
        raise ValueError(
            f"draw_negatives: node {full} is linked with all of the other {num_nodes - 1} nodes,"
            " wanted one that it is not linked with"
        )
    # The r-th free node is r + i where i taken ones come before it: those whose number less
    # their rank among the taken is at most r.
    rank = torch.arange(len(key)) - start[of]
    r = _below((num_nodes - taken)[local], generator)
    before = torch.searchsorted(of * num_nodes + node - rank, local * num_nodes + r, right=True)
    return torch.stack([pairs[:, 0], r + before - start[local]], dim=1)


def _draw(
    first: Tensor, degree: Tensor, fanout: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Places of at most ``fanout`` of each node's edges, and whose each is: two int64 [E]."""
    if fanout < 0:
        return _ranges(first, degree)
    many = degree > fanout
    place, which = _ranges(first, degree.masked_fill(many, 0))
    chosen = _choose(degree[many], fanout, generator) + first[many, None]
    others = torch.nonzero(many).expand(-1, fanout)
    return torch.cat([place, chosen.flatten()]), torch.cat([which, others.flatten()])


def _choose(total: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[n, count]: for each i, that many different ones of range(total[i]), every set as likely.

    Floyd's algorithm (Bentley and Floyd 1987, CACM 30.9), all rows at once; cost does not grow
    with ``total``.
    """
    chosen = torch.empty(len(total), count, dtype=torch.int64)
    for i in range(count):
        last = total - count + i
        new = _below(last + 1, generator)
        again = (chosen[:, :i] == new[:, None]).any(dim=1)
        chosen[:, i] = torch.where(again, last, new)
    return chosen


def _below(high: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform integers from 0 to ``high[i] - 1``, int64 [n]; high less than 2^53."""
    return (torch.rand(len(high), dtype=torch.float64, generator=generator) * high).long()


def _ranges(first: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """``first[i], ..., first[i] + count[i] - 1`` for all i in a row, and the i of each."""
    which = torch.repeat_interleave(torch.arange(len(count)), count)
    skipped = count.cumsum(0) - count
    return torch.arange(len(which)) + (first - skipped)[which], which


def _own(function: str, generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        raise TypeError(f"{function}: generator is None, wanted a torch.Generator of its own")
    return generator


def _check_seeds(seeds: Tensor, num_nodes: int) -> None:
    if not isinstance(seeds, Tensor) or seeds.dtype != torch.int64 or seeds.dim() != 1:
        found = f"{seeds.dtype}{list(seeds.shape)}" if isinstance(seeds, Tensor) else type(seeds)
        raise TypeError(f"sample_subgraph: seeds is {found}, wanted int64 [n]")
    if not len(seeds):
        raise ValueError("sample_subgraph: seeds is empty, wanted at least one node")
    if not 0 <= int(seeds.min()) <= int(seeds.max()) < num_nodes:
        raise ValueError(
            f"sample_subgraph: seeds are {int(seeds.min())} to {int(seeds.max())},"
            f" wanted 0 to {num_nodes - 1}"
        )


def _check_fanouts(fanouts: Sequence[int]) -> None:
    whole = all(isinstance(fanout, int) and (fanout == -1 or fanout > 0) for fanout in fanouts)
    if not len(fanouts) or not whole:
        raise ValueError(
            f"sample_subgraph: fanouts is {fanouts!r}, wanted for each hop a number of at least 1,"
            " or -1 for all neighbours"
        )
