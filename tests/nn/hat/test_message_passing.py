"""HAT on torch_geometric's modules: closed channels are closed, the promise holds bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.graph import Graph
from maskcl.nn import ConversionError, HATNetwork, to_hat, to_plain
from maskcl.nn.hat.message_passing import HATMessagePassing
from maskcl.nn.hat.sparse_product import sparse_product

pyg = pytest.importorskip("torch_geometric.nn")

CLASSES = [3, 2, 4]
NODES, FEATURES = 24, 5


def graph(seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(NODES, (2, 90), generator=generator)
    return Graph(torch.randn(NODES, FEATURES, generator=generator), torch.unique(edges, dim=1))


class Nodes(nn.Module):
    """Two convolutions, BatchNorm behind the second, a head on the chosen nodes."""

    def __init__(self, make: Callable[[int, int], nn.Module], width: int = 8) -> None:
        super().__init__()
        self.first, self.second = make(FEATURES, 8), make(width, 8)
        self.relu, self.elu, self.norm = nn.ReLU(), nn.ELU(), nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, edges: Tensor, nodes: Tensor) -> Tensor:
        h = self.relu(self.first(x, edges))
        return self.head(self.elu(self.norm(self.second(h, edges)))[nodes])


def gin(i: int, o: int) -> nn.Module:
    return pyg.GINConv(nn.Sequential(nn.Linear(i, 6), nn.ReLU(), nn.Linear(6, o)), eps=0.1)


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "gcn": (lambda: Nodes(lambda i, o: pyg.GCNConv(i, o)), "index"),
    "gcn on a matrix": (lambda: Nodes(lambda i, o: pyg.GCNConv(i, o, normalize=False)), "gcn"),
    "sage": (lambda: Nodes(lambda i, o: pyg.SAGEConv(i, o)), "index"),
    "sage, largest": (lambda: Nodes(lambda i, o: pyg.SAGEConv(i, o, aggr="max")), "index"),
    "graph": (lambda: Nodes(lambda i, o: pyg.GraphConv(i, o)), "sum"),
    "gin": (lambda: Nodes(gin), "sum"),
    "gat": (lambda: Nodes(lambda i, o: pyg.GATConv(i, o, heads=2), width=16), "index"),
    "gat, averaged": (lambda: Nodes(lambda i, o: pyg.GATConv(i, o, 2, concat=False)), "index"),
}


def inputs(kind: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    data = graph(seed)
    return data.x, data.edges(kind), torch.arange(0, NODES, 2)


def network(name: str, classes: list[int] | None = CLASSES, **options: object) -> HATNetwork:
    make, kind = MODELS[name]
    torch.manual_seed(1)
    return to_hat(make(), 3, inputs(kind), classes=classes, **options)


def train(net: HATNetwork, task: int, data: tuple, outputs: int = 3, steps: int = 15) -> list:
    with torch.no_grad():  # leave room for the next tasks
        draw = torch.rand(net.embeddings[task].shape, generator=torch.Generator().manual_seed(task))
        net.embeddings[task].copy_(torch.where(draw < 0.4, 1.0, -1.0))
    net.begin_task(task)
    optimizer = torch.optim.AdamW(net.task_parameters(task), lr=0.02, weight_decay=0.1)
    protection = net.protection()
    net.train()
    losses = []
    for step in range(steps):
        saved = protection.snapshot()
        optimizer.zero_grad()
        with net.task(task, 1.0 + 5 * step):
            logits = net(*data)
            labels = torch.arange(len(logits)) % logits.shape[1]
            loss = F.cross_entropy(logits, labels) + 0.01 * net.sparsity()
        loss.backward()
        protection.clamp_()
        optimizer.step()
        protection.restore_(saved)
        losses.append(loss.item())
    net.finish_task(task)
    return losses


@torch.no_grad()
def logits(net: HATNetwork, task: int, data: tuple) -> Tensor:
    net.eval()
    with net.task(task):
        return net(*data)


@pytest.mark.parametrize("name", list(MODELS))
def test_earlier_logits_keep_their_bits(name: str) -> None:
    net, data = network(name), inputs(MODELS[name][1])
    known: dict[int, Tensor] = {}
    for task in range(3):
        before = [p.detach().clone() for p in net.protection().parameters]
        losses = train(net, task, data)
        assert losses[-1] < max(losses)
        moved = [not torch.equal(a, b) for a, b in zip(before, net.protection().parameters)]
        assert sum(moved) >= len(moved) - 1, "every kind of parameter is trained"
        for earlier, wanted in known.items():
            assert torch.equal(logits(net, earlier, data), wanted)
        known[task] = logits(net, task, data)
    trained = torch.stack([known[0].std(), known[1].std(), known[2].std()])
    assert (trained > 1e-3).all()


@pytest.mark.parametrize("name", list(MODELS))
def test_a_closed_channel_is_zero_and_takes_no_part(name: str) -> None:
    """Whatever stands in the weights of closed channels, the outputs have the same bits."""
    net, data = network(name), inputs(MODELS[name][1])
    train(net, 0, data, steps=3)
    wanted = logits(net, 0, data)
    mask = net.hard_mask(0)
    assert 0 < mask.sum() < len(mask)
    free = net.protection()
    saved = free.snapshot()
    with torch.no_grad():
        for parameter in free.parameters:
            parameter.normal_()
    free.restore_(saved)
    assert any(not torch.equal(a, b) for a, b in zip(saved, free.parameters))
    assert torch.equal(logits(net, 0, data), wanted)


@pytest.mark.parametrize("name", list(MODELS))
def test_with_all_channels_open_it_computes_what_the_model_did(name: str) -> None:
    make, kind = MODELS[name]
    torch.manual_seed(1)
    model = make().eval()
    net = to_hat(model, 3, inputs(kind), init="dense")
    torch.testing.assert_close(logits(net, 0, inputs(kind)), model(*inputs(kind)).detach())


@pytest.mark.parametrize("name", list(MODELS))
def test_exported_it_is_the_ordinary_model(name: str) -> None:
    net, data = network(name), inputs(MODELS[name][1])
    train(net, 0, data, steps=3)
    plain = to_plain(net, 0)
    assert not any(isinstance(m, HATMessagePassing) for m in plain.modules())
    assert not any("maskcl.nn.message" in type(m).__module__ for m in plain.modules())
    torch.testing.assert_close(plain(*data).detach(), logits(net, 0, data))


def test_the_gates_learn_through_attention_and_channels() -> None:
    net, data = network("gat"), inputs("index")
    net.begin_task(0)
    with net.task(0, 2.0):
        net(*data).square().sum().backward()
    grad = net.embeddings[0].grad
    assert grad is not None and (grad != 0).all()


class Links(Nodes):
    def forward(self, x: Tensor, edges: Tensor, pairs: Tensor) -> Tensor:
        h = self.relu(self.second(self.relu(self.first(x, edges)), edges))
        return self.head(h[pairs[:, 0]] * h.index_select(0, pairs[:, 1]))


class Whole(Nodes):
    def __init__(self, readout: str) -> None:
        super().__init__(pyg.GraphConv)
        self.readout = readout
        self.hidden = nn.Linear(8, 6)

    def forward(self, x: Tensor, edges: Tensor, index: Tensor, count: int) -> Tensor:
        h = self.relu(self.second(self.relu(self.first(x, edges)), edges))
        if self.readout == "mean":
            h = pyg.global_mean_pool(h, index, count)
        elif self.readout == "sum":
            h = pyg.global_add_pool(h, index, count)
        else:
            h = pyg.global_max_pool(h, index, count)
        return self.head(F.pad(torch.tanh(self.hidden(h)), (0, 2)))


@pytest.mark.parametrize("what", ["links", "mean", "sum", "max"])
def test_links_and_whole_graphs_keep_their_bits(what: str) -> None:
    data = graph()
    if what == "links":
        model: nn.Module = Links(pyg.GraphConv)
        rest: tuple = (torch.randint(NODES, (30, 2)),)
    else:
        model, rest = Whole(what), (torch.arange(NODES) // 6, 4)
    given = (data.x, data.edges("mean"), *rest)
    net = to_hat(model, 3, given, classes=CLASSES)
    assert len(net.units) == (2 if what == "links" else 3)
    known: dict[int, Tensor] = {}
    for task in range(3):
        train(net, task, given)
        for earlier, wanted in known.items():
            assert torch.equal(logits(net, earlier, given), wanted)
        known[task] = logits(net, task, given)


def test_sparse_features_give_what_dense_ones_do() -> None:
    dense = (torch.rand(NODES, FEATURES) < 0.3).float()
    data, sparse = (
        Graph(dense, graph().edge_index),
        Graph(dense.to_sparse_csr(), graph().edge_index),
    )
    nodes = torch.arange(NODES)
    net = network("gcn on a matrix")
    both = [(g.x, g.edges("gcn"), nodes) for g in (data, sparse)]
    losses = [train(network("gcn on a matrix"), 0, given, steps=4) for given in both]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]))
    train(net, 0, both[1])
    wanted = logits(net, 0, both[1])
    torch.testing.assert_close(wanted, logits(net, 0, both[0]))
    train(net, 1, both[1])
    assert torch.equal(logits(net, 0, both[1]), wanted)


def test_a_product_with_a_sparse_matrix_is_torchs() -> None:
    matrix = (torch.rand(7, 5) * (torch.rand(7, 5) < 0.4)).double().to_sparse_csr()
    dense = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(sparse_product(matrix, dense), matrix @ dense)
    assert torch.autograd.gradcheck(lambda d: sparse_product(matrix, d), (dense,))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda i, o: pyg.GCNConv(i, o, cached=True), "cached=True, wanted False"),
        (lambda i, o: pyg.SAGEConv(i, o, normalize=True), "normalize=True, wanted False"),
        (lambda i, o: pyg.SAGEConv(i, o, project=True), "project=True, wanted False"),
        (lambda i, o: pyg.SAGEConv(i, o, aggr="std"), "aggr='std', wanted"),
        (lambda i, o: pyg.GATConv(i, o, residual=True), "residual=True, wanted False"),
        (lambda i, o: pyg.GINConv(nn.Linear(i, o), train_eps=True), "set train_eps=False"),
        (lambda i, o: pyg.GCNConv(-1, o), "no shape yet: run the model once"),
        (lambda i, o: pyg.TransformerConv(i, o), "TransformerConv"),
    ],
)
def test_what_would_leak_is_refused(make: Callable[[int, int], nn.Module], sentence: str) -> None:
    with pytest.raises(ConversionError, match=sentence):
        to_hat(Nodes(make), 2, inputs("index"))


def test_a_frozen_convolution_stays_and_is_not_followed() -> None:
    model = Nodes(lambda i, o: pyg.GCNConv(i, o))
    for p in model.first.parameters():
        p.requires_grad_(False)
    net = to_hat(model, 2, inputs("index"), classes=[2, 2])
    assert list(net.units) == ["second"]
    assert type(net.model.first).__name__ == "GCNConv"


def test_edges_made_from_masked_values_are_refused() -> None:
    class Weighted(Nodes):
        def forward(self, x: Tensor, edges: Tensor, nodes: Tensor) -> Tensor:
            h = self.relu(self.first(x, edges))
            weight = h[edges[0]].sum(1)
            return self.head(self.second(h, edges, weight)[nodes])

    with pytest.raises(ConversionError, match="wanted one tensor"):
        to_hat(Weighted(lambda i, o: pyg.GCNConv(i, o)), 2, inputs("index"))
