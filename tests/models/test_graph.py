"""Graph models: what they compute, by hand; what conversion asks of them; what they refuse."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from maskcl.models import ENCODERS, GRAPH_PROBLEMS, READOUTS, build_graph, example_inputs

pytest.importorskip("torch_geometric")

from maskcl.models.graph import GraphClassifier, LinkClassifier, NodeClassifier, NodeEncoder
from tests import graph_zoo as zoo


def dense(edge_index: torch.Tensor, nodes: int) -> torch.Tensor:
    """A [target, source]."""
    a = torch.zeros(nodes, nodes)
    a[edge_index[1], edge_index[0]] = 1
    return a


def by_hand(encoder: str, conv: nn.Module, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    """A convolution on a dense adjacency without loops."""
    loops = a + torch.eye(len(a))
    if encoder == "gcn":
        scale = loops.sum(1).rsqrt()
        return scale[:, None] * loops * scale @ (x @ conv.lin.weight.T) + conv.bias
    if encoder == "sage":
        mean = a / a.sum(1, keepdim=True).clamp(min=1)
        return mean @ x @ conv.lin_l.weight.T + conv.lin_l.bias + x @ conv.lin_r.weight.T
    if encoder == "gin":
        return conv.nn(loops @ x)
    h = x @ conv.lin.weight.T
    slopes = (h * conv.att_dst[0]).sum(1)[:, None] + (h * conv.att_src[0]).sum(1)
    weights = nn.functional.leaky_relu(slopes, 0.2).masked_fill(loops == 0, -torch.inf)
    return weights.softmax(1) @ h + conv.bias


@pytest.mark.parametrize("encoder", ENCODERS)
def test_encoders_compute_their_papers_formulas(encoder):
    net = zoo.model("node", encoder, norm=True).eval()
    net.encoder.layers[0].after[0].running_mean.uniform_()
    x, edges, nodes = zoo.inputs("node", encoder)
    a = dense(zoo.graph().edge_index, len(x))
    h = x
    with torch.no_grad():
        for layer in net.encoder.layers:
            h = layer.after[0](by_hand(encoder, layer.conv, h, a)).relu()
        torch.testing.assert_close(net(x, edges, nodes), net.head(h[nodes]))


@pytest.mark.parametrize("encoder", ENCODERS)
@torch.no_grad()
def test_sparse_features_give_what_dense_ones_give(encoder):
    for problem in GRAPH_PROBLEMS:
        net, args = zoo.model(problem, encoder), zoo.inputs(problem, encoder)
        torch.testing.assert_close(net(*zoo.sparse(args)), net(*args))


def test_encoders_that_begin_with_products_say_so():
    found = {e: NodeEncoder(e, 3, (4,)).sparse_input for e in ENCODERS}
    assert found == {"gcn": True, "sage": True, "gin": False, "gat": True}


@torch.no_grad()
def test_a_link_is_the_product_of_its_ends():
    net, (x, edges, pairs) = zoo.model("link", "gcn"), zoo.inputs("link", "gcn")
    h = net.encoder(x, edges)
    rows = torch.stack([h[a] * h[b] for a, b in pairs.tolist()])
    torch.testing.assert_close(net(x, edges, pairs), net.head(rows))
    assert torch.equal(net(x, edges, pairs), net(x, edges, pairs.flip(1)))


@pytest.mark.parametrize("readout", READOUTS)
@torch.no_grad()
def test_a_graph_is_read_out_over_its_own_nodes(readout):
    net = zoo.model("graph", "gin", readout=readout)
    x, edges, index, count = zoo.inputs("graph", "gin")
    h = net.encoder(x, edges)
    read = {"mean": lambda r: r.mean(0), "sum": lambda r: r.sum(0), "max": lambda r: r.amax(0)}
    rows = torch.stack([read[readout](h[index == g]) for g in range(count)])
    torch.testing.assert_close(net(x, edges, index, count), net.head(rows))


@pytest.mark.parametrize("problem", GRAPH_PROBLEMS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_activations_are_modules_used_once_and_the_output_layer_is_the_last(problem, encoder):
    net = zoo.model(problem, encoder, norm=True, dropout=0.5).eval()
    calls: list[nn.Module] = []
    for module in net.modules():
        if isinstance(module, (nn.ReLU, nn.BatchNorm1d, nn.Dropout)):
            module.register_forward_hook(lambda module, *_: calls.append(module))
    net(*example_inputs(problem, net.encoder.adjacency, zoo.FEATURES))
    wanted = [m for m in net.modules() if isinstance(m, (nn.ReLU, nn.BatchNorm1d, nn.Dropout))]
    assert len(calls) == len(wanted) and set(calls) == set(wanted)
    last = [m for m in net.modules() if type(m) is nn.Linear][-1]
    assert last.out_features == 3


def test_heads_of_attention_stand_side_by_side():
    net = zoo.model("node", "gat", heads=4)
    assert [layer.conv.out_channels for layer in net.encoder.layers] == [2, 2]
    assert net(*zoo.inputs("node", "gat")).shape == (5, 3)


def test_one_output_answers_whether_a_pair_is_a_link():
    assert zoo.model("link", "sage", 1)(*zoo.inputs("link", "sage")).shape == (5, 1)


def test_parts_go_together_by_hand():
    encoder = NodeEncoder("gcn", 3, hidden=(5, 4))
    assert encoder.width == 4
    kinds = NodeClassifier, LinkClassifier, GraphClassifier
    found = [kind(encoder, 2) for kind in kinds]
    assert [type(n) for n in found] == list(kinds)
    sizes = [m.out_features for m in found[1].head if isinstance(m, nn.Linear)]
    assert sizes == [256, 2]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: build_graph("nodes", "gcn", 3, 2), "problem is 'nodes', wanted one of node, link"),
        (lambda: build_graph("node", "gnn", 3, 2), "encoder is 'gnn', wanted one of gcn, sage"),
        (lambda: build_graph("node", "gcn", 0, 2), "features is 0, wanted at least 1"),
        (lambda: build_graph("node", "gcn", 3, 0), "classes is 0, wanted at least 1"),
        (lambda: build_graph("node", "gcn", 3, 2, hidden=()), "one or more widths"),
        (lambda: build_graph("node", "gcn", 3, 2, dropout=1), r"dropout must be in \[0, 1\), got"),
        (lambda: build_graph("node", "gcn", 3, 2, heads=2), "heads belongs to gat, gcn has none"),
        (lambda: build_graph("node", "gat", 3, 2, heads=3), "heads is 3, wanted a divisor"),
        (lambda: build_graph("link", "gcn", 3, 2, readout="sum"), "problem 'link' has not"),
        (lambda: build_graph("graph", "gcn", 3, 2, readout="min"), "readout is 'min', wanted"),
        (lambda: example_inputs("node", "csr", 3), "adjacency: kind is 'csr', wanted one of index"),
        (lambda: example_inputs("nodes", "gcn", 3), "problem is 'nodes', wanted"),
    ],
)
def test_bad_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_without_torch_geometric_one_sentence_says_what_to_install():
    code = """
import sys
sys.modules["torch_geometric"] = None
from maskcl import models
from maskcl.extras import install
models.build("mlp", (4,), 2)
try:
    models.build_graph("node", "gcn", 3, 2)
except ImportError as error:
    assert str(error).count("\\n") == 0 and install("graph") in str(error)
else:
    raise SystemExit("not refused")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
