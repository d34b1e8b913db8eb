"""A sequential model in one node: what is done around it in training is seen all the same."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl.nn import to_hat, to_piggyback
from maskcl.nn.hat import layer_runs

SCALE = 5.0


def hat(classes=(3, 3)):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    return to_hat(model, 2, torch.randn(2, 6), classes=list(classes)).train()


def parts_of(net):
    """Weights and biases of the layers and of task 0's head, and the embedding."""
    first, second, heads = net.model[0], net.model[2], net.model[4]
    head = heads.heads[0]
    return [first.weight, first.bias, second.weight, second.bias, head.weight, head.bias], (
        net.embeddings[0]
    )


def formula(net, x):
    (w1, b1, w2, b2, w3, b3), embedding = parts_of(net)
    masks = torch.sigmoid(SCALE * embedding)
    hidden = F.relu(F.linear(x, w1, b1)) * masks[:9]
    hidden = F.relu(F.linear(hidden, w2, b2)) * masks[9:]
    return F.linear(hidden, w3, b3), masks


@pytest.fixture
def nodes(monkeypatch):
    """How often all was one node."""
    found = []
    inner = layer_runs.gated_linears
    monkeypatch.setattr(
        layer_runs, "gated_linears", lambda *args: (found.append(1), inner(*args))[1]
    )
    return found


@pytest.mark.parametrize("shape", [(5, 6), (2, 4, 6), (6,), (0, 6)], ids=str)
def test_values_and_gradients_are_those_of_the_formula(nodes, shape):
    net, x = hat(), torch.randn(shape, requires_grad=True)
    with net.task(0, scale=SCALE):
        y = net(x)
        term = net.sparsity()
    wanted, masks = formula(net, x)
    torch.testing.assert_close(y, wanted)
    torch.testing.assert_close(term, masks.mean())
    layers, embedding = parts_of(net)
    leaves = [x, *layers, embedding]
    found = torch.autograd.grad(y.square().sum() + term, leaves)
    right = torch.autograd.grad(wanted.square().sum() + masks.mean(), leaves)
    assert nodes == [1]
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_logits_may_be_written_in_place(nodes):
    net, x = hat(), torch.randn(5, 6)
    layers, embedding = parts_of(net)
    with net.task(0, scale=SCALE):
        y = net(x)
    y[:, 1] = -1e9
    found = torch.autograd.grad(F.cross_entropy(y, torch.zeros(5).long()), [*layers, embedding])
    wanted, _ = formula(net, x)
    wanted[:, 1] = -1e9
    loss = F.cross_entropy(wanted, torch.zeros(5).long())
    for a, b in zip(found, torch.autograd.grad(loss, [*layers, embedding]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert nodes == [1]


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_to_look_at_masks_takes_no_gradient_away(mode):
    net, x = hat(), torch.randn(5, 6)
    with net.task(0, scale=SCALE):
        net(x)
        with mode():
            net.sparsity(2.0)
            net.model[0](x)
        found = torch.autograd.grad(net.sparsity(3.0), net.embeddings[0])[0]
    _, masks = formula(net, x)
    wanted = torch.autograd.grad(3.0 * masks.mean(), net.embeddings[0])[0]
    torch.testing.assert_close(found, wanted)


def test_the_term_has_the_weight_that_it_was_made_with():
    net, x = hat(), torch.randn(5, 6)
    with net.task(0, scale=SCALE):
        net(x)
        net.configure_gate(sparsity=3.0)
        torch.testing.assert_close(net.sparsity(3.0), 3.0 * formula(net, x)[1].mean())


@pytest.mark.parametrize("convert", ["hat", "piggyback"])
@pytest.mark.parametrize("place", [None, 0, 1, 4])
def test_a_forward_of_its_own_is_called(convert, place):
    net, x, scale = hat(), torch.randn(5, 6), SCALE
    if convert == "piggyback":
        model = nn.Sequential(
            nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)
        )
        net, scale = to_piggyback(model, 2, classes=[3, 3]).train(), None
        net.begin_task(0)
    module = net.model if place is None else net.model[place]
    with net.task(0, scale=scale):
        net(x)
        inner, seen = module.forward, []
        module.forward = lambda *args: (seen.append(1), inner(*args))[1]
        net(x)
    assert seen == [1]


def test_another_model_is_the_one_that_runs():
    net, x = hat(), torch.randn(5, 6)
    with net.task(0, scale=SCALE):
        before = net(x)
        net.model = nn.Sequential(*net.model, nn.Softmax(-1))
        torch.testing.assert_close(net(x), before.softmax(-1))


def test_transforms_map_over_its_gradients():
    net, x = hat(), torch.randn(5, 6)
    with net.task(0, scale=SCALE):
        found = torch.func.jacrev(net)(x)
    wanted = torch.autograd.functional.jacobian(lambda x: formula(net, x)[0], x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
