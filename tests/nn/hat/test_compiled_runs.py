"""A sequential model inside compiled code: one op of Dynamo's graph, and nothing left behind it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from maskcl.backends import use_backend
from maskcl.ops import gated_products
from tests.nn.hat.test_layer_runs import SCALE, formula, hat, parts_of


class Graphs:
    """A backend of torch.compile that runs what was traced, and keeps the graphs.

    Args:
        op: that is looked for in them.
    """

    def __init__(self, op):
        self.op = op
        self.found = []

    def __call__(self, module, inputs):
        self.found.append(module.graph)
        return module.forward

    def ops(self, index=-1):
        """The op's arguments, wherever it is in one of them."""
        return [node.args for node in self.found[index].nodes if node.target == self.op]

    def outputs(self, index=-1):
        (output,) = (node for node in self.found[index].nodes if node.op == "output")
        return output.args[0]


@pytest.fixture(autouse=True)
def _compile_afresh():
    torch._dynamo.reset()


@pytest.fixture
def graphs():
    return Graphs(gated_products._TRACED)


def loss_of(net, weight=1.0):
    def loss(x, y):
        return F.cross_entropy(net(x), y) + net.sparsity(weight)

    return loss


def batch():
    return torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0])


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("weight", [1.0, 0.3], ids=["made with the masks", "another weight"])
def test_a_whole_loss_has_the_formulas_gradients(backend, weight):
    net = hat()
    loss = torch.compile(loss_of(net, weight), fullgraph=True, backend=backend)
    x, y = batch()
    x.requires_grad_()
    layers, embedding = parts_of(net)
    leaves = [x, *layers, embedding]
    with net.task(0, scale=SCALE):
        found = loss(x, y)
    output, masks = formula(net, x)
    wanted = F.cross_entropy(output, y) + weight * masks.mean()
    torch.testing.assert_close(found, wanted)
    for a, b in zip(
        torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_graph_has_one_op_of_ours_and_the_loss_alone_comes_out(graphs):
    net = hat()
    loss = torch.compile(loss_of(net), fullgraph=True, backend=graphs)
    with net.task(0, scale=SCALE):
        loss(*batch())
    assert len(graphs.found) == 1
    assert len(graphs.ops()) == 1
    assert len(graphs.outputs()) == 1  # of each other one autograd would make zeros


def test_the_term_may_be_asked_for_again_inside_and_behind(graphs):
    net = hat()

    def loss(x, y):
        return F.cross_entropy(net(x), y) + net.sparsity(), net.sparsity(), net.sparsity(0.5)

    x, y = batch()
    with net.task(0, scale=SCALE):
        _, again, half = torch.compile(loss, fullgraph=True, backend=graphs)(x, y)
        behind, behind_half = net.sparsity(), net.sparsity(0.5)
    share = formula(net, x)[1].mean()
    for found, wanted in [
        (again, share),
        (behind, share),
        (half, share / 2),
        (behind_half, share / 2),
    ]:
        torch.testing.assert_close(found, wanted)
    net.embeddings[0].grad = None
    behind.backward()
    (wanted,) = torch.autograd.grad(share, net.embeddings[0])
    torch.testing.assert_close(net.embeddings[0].grad, wanted)


def test_the_term_behind_a_compiled_network():
    net = hat()
    run = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, y = batch()
    with net.task(0, scale=SCALE):
        found = F.cross_entropy(run(x), y) + net.sparsity(0.3)
    output, masks = formula(net, x)
    wanted = F.cross_entropy(output, y) + 0.3 * masks.mean()
    leaves = [*parts_of(net)[0], net.embeddings[0]]
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves), torch.autograd.grad(wanted, leaves)
    )


def test_the_share_of_hard_masks():
    net = hat()
    x, _ = batch()

    def share(x):
        net(x)
        return net.sparsity(), net.sparsity()

    run = torch.compile(share, fullgraph=True, backend="aot_eager")
    with net.task(0), torch.no_grad():
        wanted = (net.embeddings[0] > 0).float().mean()
        assert all(torch.equal(found, wanted) for found in (*run(x), net.sparsity()))


def test_without_a_forward_there_is_no_term():
    net = hat()
    with net.task(0, scale=SCALE), pytest.raises(Exception, match="no forward yet"):
        torch.compile(net.sparsity, fullgraph=True, backend="aot_eager")()


def test_a_backend_that_is_asked_for_is_compiled_for_itself(graphs):
    net = hat()
    run = torch.compile(net, fullgraph=True, backend=graphs)
    x, _ = batch()
    with net.task(0, scale=SCALE):
        first = run(x)
        with use_backend("reference"):
            second = run(x)
        assert torch.equal(run(x), first)
    torch.testing.assert_close(first, second)
    assert [args[-2] for i in range(2) for args in graphs.ops(i)] == [None, "reference"]
    assert len(graphs.found) == 2


def test_a_hook_that_comes_later_is_seen_where_torch_sees_it():
    net, plain = hat(), torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU())
    x, _ = batch()
    seen = {"ours": 0, "plain": 0}

    def hook(whose):
        def count(module, args, output):
            seen[whose] += 1

        return count

    run = torch.compile(net, backend="aot_eager")
    run_plain = torch.compile(plain, backend="aot_eager")
    with net.task(0, scale=SCALE):
        before, _ = run(x), run_plain(x)
        handle = net.model[2].register_forward_hook(hook("ours"))
        plain[0].register_forward_hook(hook("plain"))
        torch.testing.assert_close(run(x), before)
        run_plain(x)
        handle.remove()
        torch.testing.assert_close(run(x), before)
    assert 1 >= seen["ours"] >= seen["plain"]


def test_parameters_that_stand_in_for_others_are_used():
    net = hat()
    x, _ = batch()
    others = {"model.0.weight": torch.randn_like(net.model[0].weight)}

    def call(weights, x):
        return functional_call(net, weights, (x,))

    run = torch.compile(call, backend="aot_eager")
    with net.task(0, scale=SCALE):
        own = run({}, x)
        found = run(others, x)
        torch.testing.assert_close(found, call(others, x))
    assert not torch.equal(found, own)


def test_a_replaced_layer_is_used():
    net = hat()
    run = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, _ = batch()
    with net.task(0, scale=SCALE):
        run(x)
        net.model[4].heads[0] = torch.nn.Linear(8, 3)
        net._changed()
    with net.task(0, scale=SCALE):
        torch.testing.assert_close(run(x), formula(net, x)[0])
