"""Importances over batches of graphs: a sample is a graph, whatever the rows inside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl.graph import Graph
from maskcl.importance import estimate
from maskcl.importance.exact import Exact
from maskcl.methods import EWC, MAS, TaskData
from maskcl.models import ENCODERS
from maskcl.nn import to_importance
from maskcl.problems import Graphs
from maskcl.scenarios.graphs.sets import GraphSet
from tests import graph_zoo as graphs
from tests.importance.zoo import assert_same

pyg = pytest.importorskip("torch_geometric.nn")

CLASSES = 3
SIZES = (4, 1, 6, 3, 5, 2, 7)


def problem(encoder: str) -> Graphs:
    return Graphs(ENCODERS[encoder])


def data(sizes=SIZES) -> GraphSet:
    return GraphSet(
        [graphs.graph(n, seed=n, dtype=torch.float64) for n in sizes],
        torch.arange(len(sizes)) % CLASSES,
    )


def forward(net, batch):
    return net(*batch[:-1]), batch[-1]


def batches(problem, size, sizes=SIZES):
    return list(problem.train_batches(data(sizes), range(len(sizes)), size))


def graph_by_graph(model, problem, *, kind="mas", sizes=SIZES):
    """The mean over graphs, each alone in a forward of its own."""
    model = copy.deepcopy(model).eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(sizes)):
        (batch,) = problem.train_batches(data(sizes), [n], 1)
        out, target = forward(model, batch)
        value = out.square().sum() if kind == "mas" else F.cross_entropy(out, target)
        found = torch.autograd.grad(value, list(model.parameters()), allow_unused=True)
        for name, g in zip(total, found, strict=True):
            if g is not None:
                total[name] += (g.abs() if kind == "mas" else g.square()) / len(sizes)
    return total


@pytest.fixture
def engines(monkeypatch):
    """Every Exact that is made."""
    made = []

    class Seen(Exact):
        def __init__(self, subject):
            super().__init__(subject)
            made.append(self)

    monkeypatch.setattr("maskcl.importance.estimation.Exact", Seen)
    return made


def backwards(monkeypatch):
    """Parameters whose gradient was taken, one list a backward of a single sample."""
    seen = []
    plain = torch.autograd.grad

    def grad(value, *args, **kwargs):
        seen.append(value)
        return plain(value, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    return seen


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("kind", ["mas", "fisher"])
def test_equals_a_loop_over_graphs_whatever_the_batches(encoder, kind):
    model = graphs.model("graph", encoder, CLASSES, norm=True).double()
    adapter = problem(encoder)
    wanted = graph_by_graph(model, adapter, kind=kind)
    assert sum(bool(value.any()) for value in wanted.values()) == len(wanted)
    for size in (1, 3, 7):
        options = {"kind": kind, "forward": forward, "segments": adapter.segments}
        assert_same(estimate(model, batches(adapter, size), **options), wanted)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_batch_costs_few_backwards(encoder, monkeypatch):
    """Biases and vectors of attention too: none goes one graph at a time."""
    model = graphs.model("graph", encoder, CLASSES).double()
    adapter, many = problem(encoder), SIZES * 3
    wanted = graph_by_graph(model, adapter, sizes=many)
    given = batches(adapter, len(many), many)
    seen = backwards(monkeypatch)
    found = estimate(model, given, forward=forward, segments=adapter.segments)
    assert_same(found, wanted)
    assert len(seen) <= 8 < len(many)


@pytest.mark.parametrize("encoder", ["gcn", "gat"])
@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_features_may_be_sparse(encoder, reduction):
    model = graphs.model("graph", encoder, CLASSES).double()
    options = {"forward": forward, "segments": problem(encoder).segments, "reduction": reduction}
    given = batches(problem(encoder), 4)
    sparse = [batch._replace(x=batch.x.to_sparse_csr()) for batch in given]
    assert_same(estimate(model, sparse, **options), estimate(model, given, **options))


def test_rows_in_any_order_and_graphs_without_rows():
    model = graphs.model("graph", "gin", CLASSES).double()
    (batch,) = batches(problem("gin"), 7)
    wanted = graph_by_graph(model, problem("gin"))
    order = torch.randperm(len(batch.x))
    edges = batch.edges.to_dense()[order][:, order].to_sparse_csr()
    mixed = batch._replace(x=batch.x[order], edges=edges, graph=batch.graph[order])
    options = {"forward": forward, "segments": problem("gin").segments}
    assert_same(estimate(model, [mixed], **options), wanted)
    # As many nodes as graphs, and one graph has two of them: rows alone do not say which is which.
    graph = torch.tensor([0, 0, 2])
    edges = Graph(batch.x[:3], torch.tensor([[0, 1], [1, 0]])).edges("sum")
    empty = batch._replace(
        x=batch.x[:3], edges=edges, graph=graph, num_graphs=3, target=torch.arange(3)
    )
    values = model.eval()(*empty[:-1]).square().sum(1)
    parameters = list(model.parameters())
    parts = [
        torch.autograd.grad(v, parameters, retain_graph=True, allow_unused=True) for v in values
    ]
    wanted = {
        name: sum(part[i].abs() for part in parts if part[i] is not None) / 3
        for i, (name, _) in enumerate(model.named_parameters())
    }
    assert_same(estimate(model, [empty], **options), wanted)


class Attends(nn.Module):
    """GATv2: attention's vector meets edges, which belong to no row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = pyg.GATv2Conv(graphs.FEATURES, 4, heads=2, edge_dim=2)
        self.mean = nn.Parameter(torch.ones(8))  # of which all rows see one number
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x, edges, graph, count):
        h = self.conv(x, edges, torch.ones(edges.shape[1], 2, dtype=x.dtype)).tanh()
        return self.head(pyg.global_add_pool(h * self.mean.mean(), graph, count))


def test_what_meets_no_row_by_itself_goes_one_graph_at_a_time(engines):
    torch.manual_seed(0)
    model, adapter = Attends().double(), Graphs("index")
    wanted = graph_by_graph(model, adapter)
    for size in (3, 7):
        given = batches(adapter, size)
        found = estimate(model, given, forward=forward, segments=adapter.segments)
        assert_same(found, wanted)
    exact = engines[-1]
    slow = {exact.subject.names[p] for p in exact.rest if not exact.per_sample.spread.fits[p]}
    assert slow == {"conv.att", "conv.lin_edge.weight", "mean"}


def test_memory_bounds_the_copies_and_changes_nothing():
    model = graphs.model("graph", "gat", CLASSES).double()
    adapter = problem("gat")
    options = {"forward": forward, "segments": adapter.segments}
    given = batches(adapter, 7)
    assert_same(estimate(model, given, memory=64, **options), estimate(model, given, **options))


class Pairs(nn.Module):
    """A norm over all rows of a batch behind a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(graphs.FEATURES, 8)
        self.norm = pyg.PairNorm()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x, edges, graph, count):
        return self.head(pyg.global_mean_pool(self.norm(self.first(x)), graph, count))


def test_graphs_that_mix_are_refused():
    adapter = problem("gcn")
    options = {"forward": forward, "segments": adapter.segments}
    with pytest.raises(RuntimeError, match=r'depends on rows that segments give.*"batch"'):
        estimate(Pairs().double(), batches(adapter, 4), **options)
    model = graphs.model("graph", "gcn", CLASSES).double()
    wrong = {**options, "segments": lambda batch: (batch.graph + 1) % batch.num_graphs}
    with pytest.raises(RuntimeError, match="depends on rows that segments give to another"):
        estimate(model, batches(adapter, 4), **wrong)


@pytest.mark.parametrize(
    ("segments", "sentence"),
    [
        (lambda b: b.graph[:-1], r"returned 18 entries, wanted one for each row, .* given 4 or 19"),
        (lambda b: b.graph.float(), r"returned torch\.float32, wanted an int64 tensor"),
        (lambda b: b.graph.tolist(), "returned list, wanted an int64 tensor"),
        (lambda b: b.graph[None], r"returned shape \[1, 19\], wanted \[rows\]"),
        (lambda b: b.graph + 1, "name samples 1 to 4, wanted 0 to 3, as the outputs have 4 rows"),
        (lambda b: b.graph - 1, "name samples -1 to 2, wanted 0 to 3"),
    ],
)
def test_segments_that_are_none_are_named(segments, sentence):
    model = graphs.model("graph", "gcn", CLASSES).double()
    given = [batches(problem("gcn"), 4, (4, 5, 6, 4))[0]]
    with pytest.raises((TypeError, ValueError), match=f"estimate: segments {sentence}"):
        estimate(model, given, forward=forward, segments=segments)


@pytest.mark.parametrize("what", ["node", "link"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_nodes_and_links_are_measured_by_the_batch(what, encoder):
    model = graphs.model(what, encoder, CLASSES).double()
    args = (*graphs.inputs(what, encoder, dtype=torch.float64), torch.arange(5) % CLASSES)
    with pytest.raises(RuntimeError, match=r'passes messages between rows.*reduction="batch"'):
        estimate(model, [args], forward=forward)
    found = estimate(model, [args], forward=forward, reduction="batch")
    value = model.eval()(*args[:-1]).square().sum(1).mean()
    grads = torch.autograd.grad(value, list(model.parameters()))
    # The number of samples is that of nodes or pairs asked for, not of the graph's nodes.
    wanted = {n: g.abs() for (n, _), g in zip(model.named_parameters(), grads, strict=True)}
    assert_same(found, wanted)


def test_one_logit_is_a_yes_or_no():
    """Fisher information of a sigmoid: that of two classes with logits 0 and z."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 1).double(), torch.randn(9, 5).double(), torch.arange(9) % 2
    found = estimate(model, [(x, y)], kind="fisher")
    slope = (torch.sigmoid(model(x)) - y[:, None]).detach()
    wanted = {"weight": (slope * x).square().mean(0, keepdim=True), "bias": slope.square().mean(0)}
    assert_same(found, wanted)
    predicted = estimate(model, [x], kind="fisher", labels="predicted")
    assert_same(predicted, estimate(model, [(x, (model(x)[:, 0] > 0).long())], kind="fisher"))


@pytest.mark.parametrize("method", [MAS(), EWC()], ids=lambda method: type(method).__name__)
def test_methods_measure_graphs_through_their_task_data(method):
    net = to_importance(graphs.model("graph", "gcn", CLASSES).double(), 2, classes=[CLASSES] * 2)
    adapter, found = problem("gcn"), []
    for size in (2, 7):
        twin = copy.deepcopy(net)
        state = method.begin_task(twin, 0)
        given = TaskData(lambda size=size: batches(adapter, size), forward, adapter.segments)
        method.end_task(twin, state, given)
        found.append(dict(twin.named_buffers()))
    assert any(bool(t.any()) for n, t in found[0].items() if "importance" in n)
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])
    with pytest.raises(RuntimeError, match="segments= makes whole graphs the samples"):
        method.end_task(net, method.begin_task(net, 0), TaskData(given.batches, forward))
