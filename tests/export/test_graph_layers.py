"""compact on networks of torch_geometric's convolutions."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from maskcl import models
from maskcl.export import compact
from maskcl.graph import Graph
from maskcl.nn import to_hat, to_piggyback, to_plain
from tests.export.zoo import count

pytest.importorskip("torch_geometric")


def inputs(problem: str, kind: str) -> tuple:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 5, generator=generator)
    pairs = torch.randint(20, (2, 60), generator=generator)
    edges = Graph(x, pairs).edges(kind)
    rest = {
        "node": (torch.arange(0, 20, 2),),
        "link": (pairs.T[:7],),
        "graph": (torch.arange(20) // 4, 5),
    }
    return x, edges, *rest[problem]


@pytest.mark.parametrize("problem", models.GRAPH_PROBLEMS)
@pytest.mark.parametrize("encoder", list(models.ENCODERS))
@torch.no_grad()
def test_same_outputs_with_fewer_parameters(problem: str, encoder: str) -> None:
    kind = models.ENCODERS[encoder]
    torch.manual_seed(0)
    model = models.build_graph(problem, encoder, 5, 3, hidden=(16, 12), norm=True)
    net = to_hat(model, 2, models.example_inputs(problem, kind, 5), classes=[3, 2])
    net.embeddings[1].copy_((torch.rand_like(net.embeddings[1]) < 0.4) * 2.0 - 1)
    net.finish_task(1)
    data = inputs(problem, kind)
    small, full = compact(net.eval(), 1), to_plain(net, 1)
    with net.task(1):
        wanted = net(*data)
    assert wanted.shape == (len(data[2]) if problem != "graph" else 5, 2)
    torch.testing.assert_close(small(*data), wanted, rtol=0, atol=1e-6)
    # A convolution with attention stays as it is; what comes behind it does not.
    if encoder != "gat":
        assert count(small) < 0.6 * count(full)
    elif problem != "node":
        assert count(small) < count(full)
    assert torch.equal(copy.deepcopy(small)(*data), small(*data))
    assert torch.equal(pickle.loads(pickle.dumps(small))(*data), small(*data))


@pytest.mark.parametrize("encoder", list(models.ENCODERS))
@torch.no_grad()
def test_masked_weights_of_piggyback(encoder: str) -> None:
    torch.manual_seed(0)
    model = models.build_graph("graph", encoder, 5, 3, hidden=(16, 12))
    net = to_piggyback(model, 2, classes=[3, 2])
    net.begin_task(1)
    for name, scores in net.named_parameters():
        if name.endswith("scores"):
            scores.copy_(torch.rand_like(scores) / 50 - 0.005)
            scores[:5] = -1  # these channels are 0
    net.finish_task(1)
    data = inputs("graph", models.ENCODERS[encoder])
    small = compact(net.eval(), 1, data)
    with net.task(1):
        torch.testing.assert_close(small(*data), net(*data), rtol=0, atol=1e-6)
    assert torch.equal(copy.deepcopy(small)(*data), small(*data))


@pytest.mark.parametrize("readout", models.READOUTS)
@torch.no_grad()
def test_readouts(readout: str) -> None:
    model = models.build_graph("graph", "gcn", 5, 3, hidden=(8,), readout=readout)
    net = to_hat(model, 1, models.example_inputs("graph", "gcn", 5))
    net.finish_task(0)
    data = inputs("graph", "gcn")
    empty = (*data[:3], 7)  # two graphs without nodes
    small, full = compact(net.eval(), 0), to_plain(net, 0)
    for given in (data, empty):
        torch.testing.assert_close(small(*given), full(*given), rtol=0, atol=1e-6)
