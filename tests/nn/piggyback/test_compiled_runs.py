"""Sequential networks inside compiled code, where a run of layers is one op of Dynamo's graph."""

from __future__ import annotations

import pytest
import torch

from maskcl.backends import use_backend
from maskcl.ops import piggyback_runs
from tests.nn.hat.test_compiled_runs import Graphs
from tests.nn.piggyback.test_layer_runs import begun, mlp, result


@pytest.fixture(autouse=True)
def _compile_afresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("levels", ["binary", "ternary", "topk"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_outputs_and_gradients_are_the_networks(backend, levels):
    net, x = begun(mlp(inplace=True), levels=levels), torch.randn(5, 6)
    wanted = result(net, x, net)
    found = result(net, x, torch.compile(net, fullgraph=True, backend=backend))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_each_run_is_one_op_and_nothing_is_compiled_twice():
    net, graphs = begun(mlp()), Graphs(piggyback_runs._TRACED)
    call = torch.compile(net, fullgraph=True, backend=graphs)
    for _ in range(3):
        result(net, torch.randn(5, 6), call)
    assert len(graphs.found) == 1
    assert [len(args[1]) for args in graphs.ops()] == [2, 1]  # two layers, a norm, one layer


def test_another_threshold_is_compiled_for_all_that_follow():
    net, graphs = begun(mlp()), Graphs(piggyback_runs._TRACED)
    call, x = torch.compile(net, fullgraph=True, backend=graphs), torch.randn(5, 6)
    outputs = []
    for threshold in (0.0, 0.4, 0.5, 0.6):
        net.begin_task(0, init=1.0, spread="uniform", threshold=threshold)
        with net.task(0):
            outputs.append(call(x))
            torch.testing.assert_close(outputs[-1], net(x))
    assert not torch.equal(outputs[1], outputs[2])
    assert len(graphs.found) == 2


def test_a_backend_that_is_asked_for_is_compiled_for_itself():
    net, graphs = begun(mlp()), Graphs(piggyback_runs._TRACED)
    call, x = torch.compile(net, fullgraph=True, backend=graphs), torch.randn(5, 6)
    with net.task(0):
        first = call(x)
        with use_backend("reference"):
            torch.testing.assert_close(call(x), first)
        assert torch.equal(call(x), first)
    assert [args[-2] for i in range(2) for args in graphs.ops(i)] == [None] * 2 + ["reference"] * 2


def test_a_layer_put_in_later_is_used():
    net, x = begun(mlp()), torch.randn(5, 6)
    call = torch.compile(net, fullgraph=True, backend="aot_eager")
    with net.task(0):
        before = call(x)
        net.model[3] = torch.nn.Identity()
        after = call(x)
        torch.testing.assert_close(after, net(x))
    assert not torch.equal(before, after)
