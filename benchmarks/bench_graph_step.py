"""A full-graph HAT epoch on a graph of Cora's size: GCN 3 x 256, Adam, second task.

A graph with 2,708 nodes, 1,433 features of which 1.27 % are not 0 and 10,556 edges, as Cora has,
its entries drawn. The eager rows are HAT's formulas (Serra et al. 2018) written with torch's own
ops on torch_geometric's GCNConv: "eager" on an edge list whose normalisation is kept, "eager on a
matrix" with the sparse matrix that maskcl multiplies by. The rows of maskcl keep the promise: a
guard watches the optimizer, which the eager rows do without.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.conftest import device
from maskcl import HAT
from maskcl.graph import Graph
from maskcl.nn import to_hat

pytest.importorskip("torch_geometric")
from torch_geometric.nn import GCNConv

from maskcl.models.graph import NodeClassifier, NodeEncoder

NODES, FEATURES, EDGES, DENSITY = 2708, 1433, 10_556, 0.0127
HIDDEN, CLASSES, TRAINED = 256, 3, 60
SCALE, SPARSITY, RATE = 200.0, 0.75, 1e-3
TITLE = "full-graph HAT epoch, Cora's sizes, GCN 3 x 256, Adam"
NAMES = [
    "maskcl",
    "maskcl, dense features",
    "no mask",
    "eager on a matrix",
    "eager",
]


def graph(sparse: bool) -> Graph:
    """Cora's sizes; the same numbers in both layouts."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(NODES, FEATURES, generator=generator) < DENSITY).float()
    half = torch.randint(NODES, (2, EDGES // 2), generator=generator)
    return Graph(x.to_sparse_csr() if sparse else x, torch.cat([half, half.flip(0)], 1))


class EagerGCN(nn.Module):
    """BeGin's order of things: convolution, ReLU, mask; a head for the task's classes."""

    def __init__(self, on_matrix: bool) -> None:
        super().__init__()
        widths = [FEATURES, HIDDEN, HIDDEN, HIDDEN]
        options = {"normalize": False} if on_matrix else {"cached": True}
        self.convs = nn.ModuleList(GCNConv(i, o, **options) for i, o in itertools.pairwise(widths))
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.embeddings = nn.ParameterList(nn.Parameter(torch.randn(HIDDEN)) for _ in self.convs)
        self.used = [(torch.rand(HIDDEN, device=device()) < 0.3).float() for _ in self.convs]

    def forward(self, x, edges, nodes):
        self.masks = [torch.sigmoid(SCALE * e) for e in self.embeddings]
        for conv, mask in zip(self.convs, self.masks, strict=True):
            x = F.relu(conv(x, edges)) * mask
        return self.head(x[nodes])

    @torch.no_grad()
    def gate_gradients(self):
        before = torch.ones(FEATURES, device=device())
        for conv, used, e in zip(self.convs, self.used, self.embeddings, strict=True):
            conv.lin.weight.grad *= 1 - torch.min(
                used.view(-1, 1).expand_as(conv.lin.weight),
                before.view(1, -1).expand_as(conv.lin.weight),
            )
            conv.bias.grad *= 1 - used
            top = torch.cosh((SCALE * e).clamp(-50, 50)) + 1
            e.grad *= 400.0 / SCALE * top / (torch.cosh(e) + 1)
            before = used


def eager_step(on_matrix):
    model = EagerGCN(on_matrix).to(device()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    data = graph(sparse=False)
    given = batch(data, data.edges("gcn") if on_matrix else data.edge_index)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*given[:3]), given[3])
        taken = sum((m * (1 - u)).sum() for m, u in zip(model.masks, model.used, strict=True))
        (loss + SPARSITY * taken / sum((1 - u).sum() for u in model.used)).backward()
        model.gate_gradients()
        optimizer.step()
        with torch.no_grad():
            for e in model.embeddings:
                e.clamp_(-6, 6)

    return step


def batch(data, edges):
    nodes = torch.arange(TRAINED)
    return [t.to(device()) for t in (data.x, edges, nodes, nodes % CLASSES)]


def maskcl_step(sparse):
    data = graph(sparse)
    given = batch(data, data.edges("gcn"))
    model = NodeClassifier(NodeEncoder("gcn", FEATURES, (HIDDEN,) * 3), CLASSES).to(device())
    net = to_hat(model, 2, tuple(given[:3]), classes=[CLASSES] * 2).train()
    with torch.no_grad():
        net.embeddings[0].copy_(torch.where(torch.rand_like(net.embeddings[0]) < 0.3, 6.0, -6.0))
    net.finish_task(0)
    method = HAT(sparsity=SPARSITY)
    state = method.begin_task(net, 1)
    optimizer = torch.optim.Adam(method.parameter_groups(net, 1), lr=RATE)
    method.protect(optimizer, net, state)

    def step():
        method.before_step(net, state, 0.5)
        optimizer.zero_grad()
        with net.task(1, scale=state.scale):
            loss = F.cross_entropy(net(*given[:3]), given[3]) + method.loss_term(net, state)
            loss.backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)

    return step


def plain_step():
    data = graph(sparse=False)
    given = batch(data, data.edges("gcn"))
    model = NodeClassifier(NodeEncoder("gcn", FEATURES, (HIDDEN,) * 3), CLASSES).to(device())
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(*given[:3]), given[3]).backward()
        optimizer.step()

    return step


def step_of(name):
    """A step of that row, on a network of its own."""
    torch.manual_seed(0)
    if name.startswith("maskcl"):
        return maskcl_step(sparse=name == "maskcl")
    return plain_step() if name == "no mask" else eager_step(name == "eager on a matrix")


@pytest.mark.parametrize("name", NAMES)
def test_step(timed, name):
    timed(TITLE, name, step_of(name))
