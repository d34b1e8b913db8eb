from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.data import DataGraph, batch, graph
from maskcl.compat.begin.utils import AdaptiveLinear, GCNGraph, GCNLink, GCNNode
from maskcl.nn import to_hat, to_importance, to_piggyback


def small(seed: int = 0) -> DataGraph:
    chance = torch.Generator().manual_seed(seed)
    made = graph((torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 0, 3, 2, 2])), num_nodes=5)
    made.ndata["feat"] = torch.randn(5, 4, generator=chance)
    return made


def gcn(x: Tensor, edges: tuple[Tensor, Tensor], weight: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 X W, dense."""
    a = torch.eye(len(x))
    a[edges[1], edges[0]] = 1
    scale = a.sum(1).rsqrt()
    return (scale[:, None] * a * scale[None, :]) @ x @ weight.T


def encoded(model: Any, data: DataGraph, x: Tensor) -> Tensor:
    nodes = model.core.nodes
    for conv, norm in zip(nodes.convs, nodes.norms, strict=True):
        x = torch.relu(norm(gcn(x, data.edges(), conv.lin.weight)))
    return x


def test_gcn_node_is_convolution_norm_activation() -> None:
    torch.manual_seed(0)
    data, model = small(), GCNNode(4, 3, 6, n_layers=2).eval()
    model.observe_labels(torch.tensor([0, 2]))
    wanted = model.classifier.lin(encoded(model, data, data.ndata["feat"]))
    found = model(data, data.ndata["feat"])
    torch.testing.assert_close(found[:, [0, 2]], wanted[:, [0, 2]], rtol=1e-5, atol=1e-6)
    assert bool((found[:, 1] == torch.finfo(torch.float32).min).all())


def test_gcn_link_is_an_mlp_of_the_product() -> None:
    torch.manual_seed(0)
    data, model = small(), GCNLink(4, 3, 6, n_layers=2).eval()
    h = encoded(model, data, data.ndata["feat"])
    srcs, dsts = torch.tensor([0, 4]), torch.tensor([3, 1])
    wanted = model.classifier.lin(torch.relu(model.linears[0](h[srcs] * h[dsts])))
    found = model(
        data, data.ndata["feat"], srcs, dsts, task_masks=torch.ones(2, 3, dtype=torch.bool)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("readout", ["mean", "sum", "max"])
def test_gcn_graph_reads_each_graph_out(readout: str) -> None:
    torch.manual_seed(0)
    parts = [small(1), small(2)]
    data, model = batch(parts), GCNGraph(4, 3, 8, n_layers=1, readout=readout).eval()
    rows = []
    for part in parts:
        h = encoded(model, part, model.enc(part.ndata["feat"]))
        pooled = {"mean": h.mean(0), "sum": h.sum(0), "max": h.amax(0)}[readout]
        for layer in model.mlp_layers:
            pooled = torch.relu(layer(pooled))
        rows.append(model.classifier.lin(pooled))
    model.classifier.observed.fill_(True)
    found = model(data, data.ndata["feat"])
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-5, atol=1e-6)
    assert [layer.out_features for layer in model.mlp_layers] == [4, 2]


def test_arguments_reach_the_model() -> None:
    data = small()
    model = GCNNode(4, 3, 6, torch.tanh, 0.5, 2)
    kinds = [type(module).__name__ for module in model.core.nodes.after[0]]
    assert kinds == ["Function", "Dropout"] and model.dropout.p == 0.5
    assert model.activation is torch.tanh
    bare = GCNNode(4, 3, 6, use_classifier=False).eval()
    assert bare.classifier is None and bare(data, data.ndata["feat"]).shape == (5, 6)
    with pytest.raises(RuntimeError, match="use_classifier is False"):
        bare.observe_labels(torch.tensor([0]))
    link = GCNLink(4, 3, 6, F.elu, 0.25, 4)
    assert len(link.core.nodes.convs) == 4 and link.n_layers == 4
    assert len(link.linears) == 3 and link.dropout.p == 0.25 and link.gcn.dropout.p == 0.0
    assert [type(module).__name__ for module in link.core.after[2]] == ["ELU", "Dropout"]
    with pytest.raises(ValueError, match="readout is 'median', wanted mean"):
        GCNGraph(4, 3, 8, readout="median")
    with pytest.raises(ValueError, match="edge_encoder_fn is given"):
        GCNGraph(4, 3, 8, edge_encoder_fn=lambda: None)  # type: ignore[arg-type]
    encoder = GCNGraph(4, 3, 8, node_encoder_fn=lambda: nn.Linear(4, 8, bias=False))
    assert encoder.enc.bias is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masked_logits_are_finite_and_have_no_share(dtype: torch.dtype) -> None:
    head = AdaptiveLinear(4, 3).to(dtype)
    head.observe_outputs(torch.tensor([[1], [-1]]))
    x = torch.randn(2, 4).to(dtype)
    out = head(x)
    assert bool(out.isfinite().all())
    assert F.softmax(out, -1).tolist() == [[0, 1, 0]] * 2
    own = head(x, torch.tensor([[True, False, True], [False, True, True]]))
    assert bool((F.softmax(own.float(), -1)[0, 1] == 0).all())


def test_observed_classes_by_task_and_in_state_dict() -> None:
    growing, own = AdaptiveLinear(4, 5), AdaptiveLinear(4, 5, accum=False)
    for head in (growing, own):
        head.observe_outputs(torch.tensor([0, 1, 1]))
        head.observe_outputs(torch.tensor([3]))
        assert head.observed.tolist() == [True, True, False, True, False]
    assert growing.get_output_mask().tolist() == [True, True, False, True, False]
    assert own.get_output_mask(torch.tensor([0, 1, 5])).tolist() == [
        [True, True, False, False, False],
        [False, False, False, True, False],
        [False] * 5,
    ]
    fresh = AdaptiveLinear(4, 5)
    fresh.load_state_dict(own.state_dict())
    assert torch.equal(fresh.get_output_mask(), own.get_output_mask())
    with pytest.raises(ValueError, match="new_outputs has 5, wanted classes from 0 to 4"):
        own.observe_outputs(torch.tensor([5]))
    model = GCNNode(4, 5, 6, incr_type="task")
    for labels in ([0, 1], [2]):
        model.observe_labels(torch.tensor(labels))
    assert model.get_observed_labels().sum() == 3
    assert model.get_observed_labels(1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("method", ["hat", "piggyback", "importance"])
def test_models_convert_and_answer_for_the_active_task(method: str) -> None:
    torch.manual_seed(0)
    data, plain = small(), GCNNode(4, 3, 6)
    x = data.ndata["feat"]
    convert = {
        "hat": lambda core: to_hat(core, 2, plain.tensors(data, x), classes=[3, 3]),
        "piggyback": lambda core: to_piggyback(core, 2, classes=[3, 3]),
        "importance": lambda core: to_importance(core, 2, classes=[3, 3]),
    }[method]
    model = plain.converted(convert).eval()
    assert type(model) is GCNNode and type(plain.core).__name__ == "NodeCore"
    if method == "piggyback":
        model.core.begin_task(0, threshold=0.0, init=1.0)
        model.core.finish_task(0)
        model.core.begin_task(1, threshold=0.0, init=1.0)
    every = torch.ones(5, 3, dtype=torch.bool)
    with model.task(1):
        second = model(data, x, every)
    with model.task(0):
        first = model(data, x, every)
    assert not torch.equal(first, second)  # of another head
    assert torch.equal(model(data, x, every), first)
    model.begin_task(1)  # the latest answers where none is active
    assert torch.equal(model(data, x, every), second)
