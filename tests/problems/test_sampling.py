"""Samples of neighbourhoods, and pairs that are no links."""

import itertools

import pytest
import torch

from maskcl.graph import Graph
from maskcl.problems.sampling import draw_negatives, rows, sample_subgraph


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_graph(nodes=60, edges=300, features=5, seed=1):
    """With loops, edges that are there twice, and a node that no edge touches."""
    draw = generator(seed)
    edge_index = torch.randint(0, nodes - 1, (2, edges), generator=draw)
    return Graph(torch.randn(nodes, features, generator=draw), edge_index)


def stars(count, leaves):
    """Each of ``count`` hubs hears from its own leaves, whose features are 1, 2, ... ``leaves``."""
    hub = torch.arange(count).repeat_interleave(leaves)
    leaf = torch.arange(count * leaves) + count
    x = torch.cat([torch.zeros(count), (torch.arange(count * leaves) % leaves) + 1.0])
    return Graph(x[:, None], torch.stack([leaf, hub]))


def layers(graph, kind, weights):
    hidden = graph.x
    for weight in weights:
        hidden = torch.tanh(graph.edges(kind) @ (hidden @ weight))
    return hidden


def chi_square(counts):
    """Of counts that should be equal, divided by its degrees of freedom: about 1."""
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum() / (len(counts) - 1))


# Neighbourhoods


@pytest.mark.parametrize("kind", ["sum", "mean", "gcn"])
def test_all_neighbours_give_the_seeds_the_whole_graphs_outputs(kind):
    graph = random_graph()
    weights = [torch.randn(5, 8), torch.randn(8, 3)]
    seeds = torch.tensor([7, 59, 3, 7, 40])
    part, positions = sample_subgraph(graph, seeds, [-1, -1], generator())
    assert part.num_nodes < graph.num_nodes
    whole = layers(graph, kind, weights)[seeds]
    torch.testing.assert_close(layers(part, kind, weights)[positions], whole)


def test_each_hop_draws_edges_of_the_nodes_that_the_last_one_found():
    graph = random_graph(nodes=200, edges=2000)
    graph = Graph(torch.arange(200.0)[:, None], graph.edge_index.unique(dim=1))
    seeds, fanouts = torch.arange(0, 200, 25), [3, 2]
    part, positions = sample_subgraph(graph, seeds, fanouts, generator())
    number = part.x[:, 0].long()
    assert torch.equal(number[positions], seeds)
    assert len(number.unique()) == len(number)
    found = number[part.edge_index]
    known = {tuple(edge) for edge in graph.edge_index.T.tolist()}
    drawn = [tuple(edge) for edge in found.T.tolist()]
    assert set(drawn) <= known
    assert len(set(drawn)) == len(drawn)
    degree = torch.bincount(graph.edge_index[1], minlength=200)
    received = torch.bincount(found[1], minlength=200)
    assert torch.equal(received[seeds], degree[seeds].clamp(max=3))
    senders = found[0][torch.isin(found[1], seeds)]
    first = senders[~torch.isin(senders, seeds)].unique()
    assert torch.equal(received[first], degree[first].clamp(max=2))
    assert int(received.sum()) == int(received[seeds].sum() + received[first].sum())


def test_every_set_of_neighbours_is_as_likely():
    graph = stars(6000, 6)
    part, _ = sample_subgraph(graph, torch.arange(6000), [3], generator())
    of = torch.argsort(part.edge_index[1], stable=True)
    leaves = part.x[part.edge_index[0][of], 0].view(6000, 3).sort(dim=1).values
    code = (leaves.long() * torch.tensor([100, 10, 1])).sum(1)
    sets = {
        100 * a + 10 * b + c: i
        for i, (a, b, c) in enumerate(itertools.combinations(range(1, 7), 3))
    }
    counts = torch.bincount(torch.tensor([sets[one] for one in code.tolist()]), minlength=20)
    assert 0.3 < chi_square(counts.double()) < 2.0


@pytest.mark.parametrize("kind", ["sum", "gcn"])
def test_sums_over_drawn_edges_have_the_whole_graphs_as_their_mean(kind):
    graph = stars(4000, 6)
    part, positions = sample_subgraph(graph, torch.arange(4000), [2], generator())
    whole = (graph.edges(kind) @ graph.x)[:4000, 0]
    drawn = (part.edges(kind) @ part.x)[positions, 0]
    assert drawn.std() > 0
    error = float(drawn.std()) / 4000**0.5
    assert abs(float(drawn.mean() - whole.mean())) < 4 * error < 0.05 * float(whole.mean())


def test_bags_of_words_stay_sparse():
    graph = random_graph()
    dense = graph.x * (graph.x > 0.5)
    bags = dense.to_sparse_csr()
    index = torch.tensor([5, 0, 59, 5])
    assert torch.equal(rows(bags, index).to_dense(), dense[index])
    sparse = Graph(bags, graph.edge_index)
    part, _ = sample_subgraph(sparse, index, [3, 2], generator())
    same, _ = sample_subgraph(Graph(dense, graph.edge_index), index, [3, 2], generator())
    assert part.x.layout == torch.sparse_csr
    assert torch.equal(part.x.to_dense(), same.x)


def test_draws_are_the_generators_alone():
    graph, seeds = random_graph(edges=3000), torch.arange(20)
    pairs = torch.stack([seeds, seeds + 20], dim=1)
    before = torch.get_rng_state()
    parts = [sample_subgraph(graph, seeds, [4, 4], generator(seed))[0] for seed in (0, 0, 1)]
    none = [draw_negatives(pairs, pairs.T, 60, generator(seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(parts[0].edge_index, parts[1].edge_index)
    assert torch.equal(parts[0].x, parts[1].x)
    assert not torch.equal(parts[0].x[:100], parts[2].x[:100])
    assert torch.equal(none[0], none[1])
    assert not torch.equal(none[0], none[2])
    for call in (
        lambda: sample_subgraph(graph, seeds, [4], None),
        lambda: draw_negatives(pairs, pairs.T, 60, None),
    ):
        with pytest.raises(TypeError, match="generator is None, wanted a"):
            call()


def test_a_seed_without_neighbours_is_alone():
    part, positions = sample_subgraph(random_graph(), torch.tensor([59]), [3, -1], generator())
    assert (part.num_nodes, part.edge_index.shape[1], positions.tolist()) == (1, 0, [0])
    assert part.edges("gcn").to_dense().tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("seeds", "fanouts", "sentence"),
    [
        (torch.tensor([0.5]), [2], r"seeds is torch.float32\[1\], wanted int64 \[n\]"),
        (torch.tensor([], dtype=torch.int64), [2], "seeds is empty"),
        (torch.tensor([3, 60]), [2], "seeds are 3 to 60, wanted 0 to 59"),
        (torch.tensor([3]), [], r"fanouts is \[\]"),
        (torch.tensor([3]), [2, 0], r"fanouts is \[2, 0\], wanted for each hop"),
        (torch.tensor([3]), [-2], r"fanouts is \[-2\]"),
    ],
)
def test_wrong_arguments_are_named(seeds, fanouts, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        sample_subgraph(random_graph(), seeds, fanouts, generator())


# Negatives


def allowed(source, links, nodes):
    taken = {b for a, b in links if a == source} | {a for a, b in links if b == source}
    return sorted(set(range(nodes)) - taken - {source})


def test_negatives_are_uniform_over_all_that_is_no_link_in_either_direction():
    links = [(0, 3), (0, 4), (7, 0), (2, 2), (9, 8), (3, 0)]
    known = torch.tensor(links).T
    pairs = torch.tensor([(0, 3), (9, 8)]).repeat(3000, 1)
    none = draw_negatives(pairs, known, 10, generator())
    assert torch.equal(none[:, 0], pairs[:, 0])
    for source in (0, 9):
        free = allowed(source, links, 10)
        counts = torch.bincount(none[none[:, 0] == source, 1], minlength=10)
        assert counts.nonzero().flatten().tolist() == free
        assert 0.05 < chi_square(counts[free].double()) < 3.0


def test_negatives_of_random_links_by_brute_force():
    graph = random_graph(nodes=12, edges=50)
    links = graph.edge_index.T.tolist()
    pairs = graph.edge_index.T.repeat(60, 1)
    none = draw_negatives(pairs, graph.edge_index, 12, generator())
    for source in pairs[:, 0].unique().tolist():
        found = none[none[:, 0] == source, 1].unique().tolist()
        assert found == allowed(source, links, 12)


def test_a_pair_that_is_not_among_the_known_is_no_negative_either():
    pairs = torch.tensor([(0, 1), (0, 2)]).repeat(50, 1)
    none = draw_negatives(pairs, torch.empty(2, 0, dtype=torch.int64), 4, generator())
    assert none[:, 1].unique().tolist() == [3]


def test_a_node_linked_with_all_others_is_named():
    known = torch.tensor([(5, 0), (1, 5), (5, 2), (5, 3), (4, 5), (0, 1)]).T
    with pytest.raises(ValueError, match="node 5 is linked with all of the other 5 nodes"):
        draw_negatives(torch.tensor([(0, 1), (5, 2)]), known, 6, generator())
