"""Regression and multi-label problems: losses, shapes, and the data that others batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from maskcl.problems import Graphs, Link, MultiLabel, Node, Regression, Vision
from maskcl.scenarios.graphs.sets import GraphSet, NodeSet
from tests import graph_zoo

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
OUT = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
Y = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
LABELS = (Y > 0).long()

CASES = [
    (Regression(), F.mse_loss, Y),
    (Regression(loss="l1"), F.l1_loss, Y),
    (Regression(loss="huber"), F.huber_loss, Y),
    (MultiLabel(), F.binary_cross_entropy_with_logits, LABELS),
]


@pytest.mark.parametrize(("problem", "function", "target"), CASES)
def test_the_loss_is_torchs(problem, function, target):
    torch.testing.assert_close(problem.loss(OUT, target), function(OUT, target.float()))
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0, 0.0])
    wanted = (
        function(OUT[:1], target[:1].float()) + 2 * function(OUT[2:3], target[2:3].float())
    ) / 3
    torch.testing.assert_close(problem.loss(OUT, target, weight), wanted)


def test_targets_are_not_rounded_to_the_outputs_half_precision():
    out, target = torch.zeros(4, 1, dtype=torch.bfloat16), torch.full((4, 1), 1.001)
    assert Regression().loss(out, target) == target.square().mean()


def test_a_target_of_one_value_may_have_one_dimension():
    """[n] beside [n, 1] would be broadcast to [n, n]."""
    out, target = torch.randn(5, 1), torch.randn(5)
    assert Regression().loss(out, target) == F.mse_loss(out[:, 0], target)


@pytest.mark.parametrize("problem", [Regression(), MultiLabel()])
@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2), (1, 3)])
def test_other_shapes_raise_instead_of_being_broadcast(problem, shape):
    text = rf"{type(problem).__name__}: the network has outputs \[5, 3\], wanted"
    with pytest.raises(ValueError, match=text):
        problem.loss(OUT, torch.zeros(shape))
    with pytest.raises(ValueError, match=text):
        problem.forward(lambda x: OUT, (X, torch.zeros(shape)))


def test_what_is_right_in_training():
    assert Regression().correct(OUT, Y).isnan()
    assert torch.equal(Regression().predictions(OUT), OUT)
    logits = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert MultiLabel().predictions(logits).tolist() == [[1, 0], [1, 1]]
    assert MultiLabel().correct(logits, torch.tensor([[1, 0], [1, 0]])) == 1.5


def test_batches_are_those_of_tensors():
    problem, data = Regression(), TensorDataset(X, Y)
    batches = list(problem.train_batches(data, [3, 1, 0, 2, 4], 2))
    assert [len(x) for x, _ in batches] == [2, 3]  # none of one sample
    assert len(batches) == problem.num_batches(5, 2)
    assert torch.equal(torch.cat([y for _, y in batches]), Y[[3, 1, 0, 2, 4]])
    (inputs,) = problem.test_batches(X, 8)
    net = nn.Linear(4, 3)
    assert torch.equal(problem.predict(net, inputs), net(X))


def test_what_a_run_records():
    assert Regression(loss="l1").describe() == {"name": "vision", "output": "values", "loss": "l1"}
    assert MultiLabel(Node("mean")).describe() == {
        "name": "node", "output": "multilabel", "adjacency": "mean", "fanouts": None,
    }  # fmt: skip


def test_workers_may_read_what_the_data_let_them():
    assert Regression().reads_items
    assert not MultiLabel(Graphs()).reads_items


def test_bad_arguments_get_a_sentence():
    with pytest.raises(ValueError, match="loss is 'rmse', wanted one of mse, l1, huber"):
        Regression(loss="rmse")
    with pytest.raises(ValueError, match="Regression: data is link prediction"):
        Regression(Link(prediction=True))
    for data in ("l1", Vision, Regression()):
        with pytest.raises(ValueError, match=r"MultiLabel: data is .*, wanted Vision\(\), Graphs"):
            MultiLabel(data)


def test_graphs_of_several_values():
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    graphs = [graph_zoo.graph(seed=seed) for seed in range(4)]
    y = torch.randn(4, 2)
    problem = Regression(Graphs("gcn"))
    (batch,) = problem.train_batches(GraphSet(graphs, y), [2, 0, 3, 1], 4)
    outputs, target, weight = problem.forward(graph_zoo.model("graph", "gcn", classes=2), batch)
    assert torch.equal(target, y[[2, 0, 3, 1]])
    assert weight is None
    assert outputs.shape == (4, 2)
    assert torch.equal(problem.segments(batch), batch.graph)
    with pytest.raises(ValueError, match=r"labels has shape \[3, 2\], wanted \[4\] or \[4, d\]"):
        GraphSet(graphs, y[:3])


def test_nodes_of_several_labels():
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    graph, nodes = graph_zoo.graph(), torch.arange(5)
    problem = MultiLabel(Node("gcn"))
    (batch,) = problem.train_batches(NodeSet(graph, nodes, LABELS), range(5), 8)
    outputs, target, _ = problem.forward(graph_zoo.model("node", "gcn", classes=3), batch)
    assert torch.equal(target, LABELS)
    assert problem.loss(outputs, target).isfinite()
    assert problem.segments is None
