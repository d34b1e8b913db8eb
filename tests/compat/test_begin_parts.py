"""BeGin's names for the parts of models, and its convolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.algorithms import bare, hat
from maskcl.compat.begin.data import Block, graph
from maskcl.compat.begin.utils import GCNConv, GCNGraph, GCNLink, GCNNode
from maskcl.nn import to_hat, to_piggyback
from tests.compat.begin_tiny import CLASSES, TASKS, make, ring, scenario
from tests.compat.test_begin_models import gcn, small


class OwnForward(GCNNode):
    """As BeGin's own models are written: layer by layer."""

    def forward(self, graph: Any, feat: Tensor, task_masks: Tensor | None = None) -> Tensor:
        h = self.dropout(feat)
        for i in range(self.n_layers):
            h = self.dropout(self.activation(self.norms[i](self.convs[i](graph, h))))
        self.last_h = h
        return self.classifier(h, task_masks) if self.core.head.__class__ is nn.Identity else h


def made(kind: type[Any], **options: Any) -> tuple[Any, tuple[Any, ...], list[int]]:
    """A model, the arguments of its forward, and the units of its layers."""
    torch.manual_seed(0)
    data, model = small(), kind(4, 3, 8, **options).eval()
    model.observe_labels(torch.arange(3))
    pairs = (torch.tensor([0, 4]), torch.tensor([3, 1])) if kind is GCNLink else ()
    sizes = {GCNNode: [8] * 3, GCNLink: [8] * 5, GCNGraph: [8] * 5 + [4, 2]}[kind]
    return model, (data, data.ndata["feat"], *pairs), sizes


@pytest.mark.parametrize("kind", [GCNNode, GCNLink, GCNGraph])
def test_masks_that_are_given_are_behind_each_layer(kind: type[Any]) -> None:
    model, inputs, sizes = made(kind)
    torch.testing.assert_close(
        model.forward_hat(*inputs, hat_masks=[torch.ones(n) for n in sizes]), model(*inputs)
    )
    masks = [torch.rand(n) for n in sizes]
    wanted = model.forward_hat(*inputs, hat_masks=masks)
    assert not torch.allclose(wanted, model(*inputs))
    example = model.tensors(*inputs)
    net = model.converted(lambda core: to_hat(core, 2, example, classes=[3, 3])).eval()
    net.core.model.head.heads[1].load_state_dict(model.classifier.lin.state_dict())
    with net.task(1):
        torch.testing.assert_close(net.forward_hat(*inputs, hat_masks=masks), wanted)
    for place in range(len(sizes)):  # every layer hears of its mask
        other = [torch.rand(n) if i == place else masks[i] for i, n in enumerate(sizes)]
        assert not torch.allclose(model.forward_hat(*inputs, hat_masks=other), wanted)
    with pytest.raises(ValueError, match=r"hat_masks have .* units, wanted"):
        net.forward_hat(*inputs, hat_masks=masks[:-1])


@pytest.mark.parametrize("method", ["none", "hat", "piggyback"])
@pytest.mark.parametrize("kind", [GCNNode, GCNLink, GCNGraph])
def test_features_are_what_goes_into_the_classifier(kind: type[Any], method: str) -> None:
    model, inputs, _ = made(kind)
    example, head = model.tensors(*inputs), model.classifier.lin
    if method == "hat":
        model = model.converted(lambda core: to_hat(core, 2, example, classes=[3, 3])).eval()
    elif method == "piggyback":
        model = model.converted(lambda core: to_piggyback(core, 2, classes=[3, 3])).eval()
        model.core.begin_task(0, threshold=0.0, init=1.0)
    if method != "none":
        head = model.core.model.head.heads[0]
    if kind is GCNGraph:
        out, between = model(*inputs, get_intermediate_outputs=True)
        torch.testing.assert_close(head(between[-1]), out)
        nodes_of = model.forward_without_classifier(*inputs)
        assert torch.equal(nodes_of, between[-2]) and nodes_of.shape == (5, 8)
    else:
        torch.testing.assert_close(head(model.forward_without_classifier(*inputs)), model(*inputs))
    if kind is GCNLink:
        assert model.gcn(*inputs[:2]).shape == (5, 8) and len(model.gcn.convs) == 3
    assert torch.equal(model.convs[0].weight, model.convs[0].parameters()[0].T)


def test_a_forward_of_ones_own_by_begins_names_is_the_same() -> None:
    torch.manual_seed(0)
    model, data = OwnForward(4, 3, 8, activation=torch.tanh, dropout=0.5).eval(), small()
    model.observe_labels(torch.arange(3))
    x = data.ndata["feat"]
    torch.testing.assert_close(model(data, x), GCNNode.forward(model, data, x))
    found = scenario("NC", "class")
    trained = make(bare.NCClassILBareTrainer, model=OwnForward(8, CLASSES, 8)).run(2)
    assert trained["exp_test"].shape == (TASKS, TASKS + 1) and found.num_tasks == TASKS
    with pytest.raises(RuntimeError, match="the masks come from the network's forward"):
        make(hat.NCTaskILHATTrainer, model=OwnForward(8, CLASSES, 8)).run(1)
    for name in ("convs", "dropout"):
        with pytest.raises(AttributeError, match=f"{name} is given by the core, and cannot be set"):
            setattr(model, name, nn.Dropout(0.1))


def test_blocks_graphs_and_none_of_them() -> None:
    model, (data, x), _ = made(GCNNode)
    rows = torch.tensor([3, 1])
    blocks = [Block(data), Block(data), Block(data, rows)]
    assert torch.equal(model.bforward(blocks, x), model(data, x)[rows])
    without = model.bforward_without_classifier(blocks, x)
    assert torch.equal(without, model.forward_without_classifier(data, x)[rows])
    empty = graph((torch.tensor([], dtype=torch.int64),) * 2, num_nodes=5)
    for call in (model, model.bforward):
        torch.testing.assert_close(call(None, x), model(empty, x))
    mixed = model.bforward([data, empty, data], x)
    assert not torch.allclose(mixed, model(data, x)) and mixed.shape == (5, 3)
    with pytest.raises(ValueError, match="blocks has 2 graphs, wanted 3, one a layer"):
        model.bforward([data, empty], x)


def test_reset_parameters_draws_everything_anew() -> None:
    model, inputs, _ = made(GCNGraph)
    before = {name: p.clone() for name, p in model.named_parameters() if p.dim() > 1}
    model.reset_parameters()
    assert all(not torch.equal(before[n], p) for n, p in model.named_parameters() if n in before)
    example = model.tensors(*inputs)
    net = model.converted(lambda core: to_hat(core, 2, example, classes=[3, 3]))
    with pytest.raises(RuntimeError, match="the model is a converted one, of 2 tasks"):
        net.reset_parameters()


def test_the_convolution_by_itself() -> None:
    torch.manual_seed(0)
    data = ring(5, torch.randn(5, 4))
    conv = GCNConv(4, 8, bias=False)
    data.loops = True  # as graphs of nodes and links are
    wanted = gcn(data.ndata["feat"], data.edges(), conv.weight.T)
    torch.testing.assert_close(conv(data, data.ndata["feat"]), wanted)
    model = GCNNode(4, 3, 8)
    with torch.no_grad():
        model.convs[0].weight.copy_(conv.weight)
    torch.testing.assert_close(model.convs[0](data, data.ndata["feat"]), wanted)
    alone = graph((torch.tensor([0, 0]), torch.tensor([1, 2])), num_nodes=3)
    x, right = torch.randn(3, 2), GCNConv(2, 2, norm="right", weight=False, bias=False)
    with pytest.raises(ValueError, match="nodes with no edge that ends in them"):
        right(alone, x)
    right.set_allow_zero_in_degree(True)
    own = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    found = right(alone, x, weight=own, edge_weight=torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(found, torch.stack([x[0] * 0, 2 * x[0], 3 * x[0]]) @ own)
    edges = GCNConv(
        2, 3, norm="none", activation=torch.relu, edge_encoder_fn=lambda: nn.Linear(1, 3)
    )
    edges.set_allow_zero_in_degree(True)
    attr = torch.tensor([[1.0], [2.0]])
    # Twice as wide as its input: neighbours are summed before the product.
    narrow = GCNConv(3, 2, norm="none", edge_encoder_fn=lambda: nn.Linear(1, 2))
    narrow.set_allow_zero_in_degree(True)
    y = torch.randn(3, 3)
    wanted = y[[0, 0]] @ narrow.weight + narrow.edge_encoder(attr)
    torch.testing.assert_close(narrow(alone, y, edge_attr=attr)[1:], wanted)
    with pytest.raises(ValueError, match="weight is given, wanted None"):
        edges(alone, x, weight=own)
    with pytest.raises(ValueError, match="edge_weight has 3 rows, wanted 2, one an edge"):
        edges(alone, x, edge_weight=torch.ones(3))
    with pytest.raises(ValueError, match="norm is 'left', wanted one of none, both, right"):
        GCNConv(4, 8, norm="left")
