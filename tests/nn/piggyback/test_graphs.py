"""Piggyback on torch_geometric's modules: masks on their weights, and nothing forgotten."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from maskcl.models import ENCODERS, GRAPH_PROBLEMS
from maskcl.nn import ConversionError, PiggybackLinear, to_importance, to_piggyback, to_plain
from tests import graph_zoo as zoo
from tests.nn.piggyback.zoo import CLASSES, OPTIMIZERS, begin

pyg = pytest.importorskip("torch_geometric.nn")

CONVS = {
    "gcn": lambda: pyg.GCNConv(zoo.FEATURES, 4),
    "sage": lambda: pyg.SAGEConv(zoo.FEATURES, 4),
    "graph": lambda: pyg.GraphConv(zoo.FEATURES, 4),
    "gat": lambda: pyg.GATConv(zoo.FEATURES, 2, heads=2, residual=True),
    "gatv2": lambda: pyg.GATv2Conv(zoo.FEATURES, 2, heads=2),
    "transformer": lambda: pyg.TransformerConv(zoo.FEATURES, 2, heads=2, beta=True),
    "tag": lambda: pyg.TAGConv(zoo.FEATURES, 4, K=2),
    "gin": lambda: pyg.GINConv(nn.Sequential(nn.Linear(zoo.FEATURES, 4)), train_eps=True),
    "supergat": lambda: pyg.SuperGATConv(zoo.FEATURES, 4, is_undirected=True),
}


class Net(nn.Module):
    """One convolution and a linear layer."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.out = conv, nn.Linear(4, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.out(self.conv(x, edges).relu())


def arguments() -> tuple[Tensor, Tensor]:
    graph = zoo.graph()
    return graph.x, graph.edge_index


def train(net, task: int, args, *, finish: bool = True) -> None:
    """All parameters in an optimizer with weight decay: nothing but the task's may move."""
    begin(net, task)
    step = OPTIMIZERS["adamw"](net.parameters())
    for _ in range(3):
        step.zero_grad()
        with net.task(task):
            out = net(*args)
            nn.functional.cross_entropy(out, torch.arange(len(out)) % CLASSES[task]).backward()
        step.step()
    if finish:
        net.finish_task(task)


def outputs(net, task: int, args) -> Tensor:
    net.eval()
    with torch.no_grad(), net.task(task):
        found = net(*args)
    net.train()
    return found


@pytest.mark.parametrize("name", CONVS)
def test_weights_of_convolutions_get_masks_and_all_else_stays(name):
    torch.manual_seed(0)
    model, args = Net(CONVS[name]()), arguments()
    linear = {n for n, m in model.named_modules() if type(m) in (nn.Linear, pyg.Linear)}
    net = to_piggyback(model, 1)
    assert set(net.layers) == linear and len(linear) > 1
    net.begin_task(0)
    torch.testing.assert_close(outputs(net, 0, args), model.eval()(*args))  # every weight is on
    begin(net, 0)
    before = copy.deepcopy(dict(net.named_parameters()))
    with net.task(0):
        net(*args).square().sum().backward()
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {
        f"model.{layer}.scores" for layer in linear
    }
    torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1).step()
    for n, p in net.named_parameters():
        assert n.endswith(".scores") or torch.equal(p, before[n])
    net.finish_task(0)
    with torch.no_grad():
        for layer, module in net.layers.items():
            with net.task(0):
                masked = module.masked_weight()
            assert not torch.equal(masked, module.weight)
            model.get_submodule(layer).weight.copy_(masked)
    torch.testing.assert_close(outputs(net, 0, args), model(*args))


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("problem", GRAPH_PROBLEMS)
@pytest.mark.parametrize("features", ["dense", "sparse"])
def test_nothing_is_forgotten_bit_for_bit(problem, encoder, features):
    args = zoo.inputs(problem, encoder)
    args = zoo.sparse(args) if features == "sparse" else args
    net = to_piggyback(zoo.model(problem, encoder, norm=True), 3, classes=CLASSES)
    kept = []
    for task in range(3):
        train(net, task, args)
        kept.append(outputs(net, task, args))
        assert kept[-1].shape == (5, CLASSES[task])
    for task in range(3):
        assert torch.equal(outputs(net, task, args), kept[task])
        plain = to_plain(net, task)
        assert not any(type(m).__module__.startswith("maskcl.nn") for m in plain.modules())
        torch.testing.assert_close(plain(*args), kept[task])


@pytest.mark.parametrize("encoder", ["gcn", "gat"])
def test_scores_learn_the_same_from_sparse_features(encoder):
    args = zoo.inputs("node", encoder)
    found = []
    for given in (args, zoo.sparse(args)):
        net = to_piggyback(zoo.model("node", encoder), 1)
        net.begin_task(0)  # every weight is on
        with net.task(0):
            net(*given).square().sum().backward()
        found.append([scores.grad for scores in net.scores()])
        assert all(bool((grad != 0).any()) for grad in found[-1])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("levels", ["binary", "ternary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sparse_input_meets_the_masked_weight(levels, dtype):
    torch.manual_seed(0)
    net = to_piggyback(nn.Linear(6, 4, dtype=dtype), 1, levels=levels)
    x = zoo.graph(dtype=dtype).x
    begin(net, 0)
    for _ in range(2):  # from scores, then from bits
        with torch.no_grad(), net.task(0):
            layer = net.layers[""]
            wanted = x @ layer.masked_weight().T + layer.bias
            assert not torch.equal(layer.masked_weight(), layer.weight)
            torch.testing.assert_close(net(x.to_sparse_csr()), wanted)
        if not net.finished[0]:
            net.finish_task(0)


def test_the_very_parameters_are_taken_over_and_shared_ones_stay_shared():
    conv = pyg.SAGEConv(zoo.FEATURES, 4, bias=False)
    conv.lin_r.weight = conv.lin_l.weight
    net = to_piggyback(Net(conv), 1)
    left, right = net.layers["conv.lin_l"], net.layers["conv.lin_r"]
    assert isinstance(left, PiggybackLinear) and left.weight is right.weight
    assert left.words is not right.words and left.bias is None


class Reads(pyg.MessagePassing):
    """Multiplies with the weight of a layer that it never calls."""

    def __init__(self) -> None:
        super().__init__(aggr="sum")
        self.lin = pyg.Linear(zoo.FEATURES, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.propagate(edges, x=x @ self.lin.weight.t())


@pytest.mark.parametrize(
    ("conv", "sentence"),
    [
        (lambda: pyg.GCNConv(zoo.FEATURES, 4, cached=True), r"'conv' \(GCNConv\) has cached=True"),
        (lambda: pyg.SGConv(zoo.FEATURES, 4, cached=True), r"\(SGConv\) has cached=True"),
        (lambda: pyg.GCNConv(-1, 4), "has no shape yet: run the model once"),
        (Reads, r"'conv' \(Reads\) reads lin.weight instead of calling the layer"),
    ],
)
def test_what_would_go_wrong_silently_is_refused(conv, sentence):
    with pytest.raises(ConversionError, match=sentence):
        to_piggyback(Net(conv()), 2)


def test_importances_refuse_a_kept_graph_too():
    with pytest.raises(ConversionError, match="first graph that it sees for all tasks"):
        to_importance(Net(pyg.GCNConv(zoo.FEATURES, 4, cached=True)), 2)


@pytest.mark.parametrize("problem", GRAPH_PROBLEMS)
@pytest.mark.parametrize("growing", [False, True])
def test_importance_networks_export_the_tasks_own_logits(problem, growing):
    args = zoo.inputs(problem, "gat")
    net = to_importance(zoo.model(problem, "gat"), 3, classes=CLASSES, growing=growing)
    for task in range(3):
        found = outputs(net, task, args)
        assert found.shape == (5, CLASSES[task])
        plain = to_plain(net, task)
        assert not any(type(m).__module__.startswith("maskcl.nn") for m in plain.modules())
        torch.testing.assert_close(plain(*args), found)
