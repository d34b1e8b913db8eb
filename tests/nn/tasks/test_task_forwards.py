"""One batch under several tasks, on every kind of network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskcl.nn import to_hat, to_importance, to_piggyback
from tests import graph_zoo
from tests.nn import zoo

CLASSES = [3, 3, 3]


def networks(model, args):
    """All three kinds of network, the first two of three tasks finished."""
    for convert in ("hat", "piggyback", "importance"):
        torch.manual_seed(0)
        if convert == "hat":
            net = to_hat(model, 3, args, classes=CLASSES)
        else:
            net = {"piggyback": to_piggyback, "importance": to_importance}[convert](
                model, 3, classes=CLASSES
            )
        net.train()
        for task in range(2):
            net.begin_task(task)
            with torch.no_grad():
                for name, parameter in net.named_parameters():
                    if parameter.requires_grad and ("scores" in name or "heads" in name):
                        parameter.add_(0.1 * torch.randn_like(parameter))
            net.finish_task(task)
        yield net.eval()


def assert_as_one_by_one(net, args):
    found = net.forward_tasks(*args)
    assert len(found) == 2
    for task, output in enumerate(found):
        with net.task(task), torch.no_grad():
            wanted = net(*args)
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-6)
    assert found[0].data_ptr() != found[1].data_ptr()
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("name", zoo.MODELS)
def test_images(name):
    model, x = zoo.MODELS[name]().eval(), zoo.images(4)
    for net in networks(model, x[:2]):
        assert_as_one_by_one(net, (x,))


@pytest.mark.parametrize("encoder", ["gcn", "gin"])
@pytest.mark.parametrize("problem", ["node", "link", "graph"])
def test_graphs(problem, encoder):
    pytest.importorskip("torch_geometric")
    args = graph_zoo.inputs(problem, encoder)
    for net in networks(graph_zoo.model(problem, encoder, norm=True), args):
        assert_as_one_by_one(net, args)


def test_modules_in_front_of_the_first_that_knows_of_tasks_run_once():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    net = to_importance(model, 2, classes=[3, 3]).eval()
    for task in range(2):
        net.begin_task(task)
        net.finish_task(task)
    seen = []
    net.model[0].register_forward_hook(lambda *args: seen.append(1))
    net.forward_tasks(torch.randn(5, 4))
    assert seen == [1]
    net.register_forward_hook(lambda *args: None)  # which wants to see every call
    net.forward_tasks(torch.randn(5, 4))
    assert seen == [1, 1, 1]


def test_no_two_outputs_are_one_tensor():
    net = to_importance(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), 2).eval()
    for task in range(2):
        net.finish_task(task)
    first, second = net.forward_tasks(torch.randn(5, 4))
    wanted = second.clone()
    first.zero_()
    assert torch.equal(second, wanted)


def test_what_cannot_be_is_said():
    x = torch.randn(4, 16)
    model = zoo.MODELS["mlp"]()
    for net in networks(model, x):
        name = type(net).__name__
        with pytest.raises(RuntimeError, match=f"{name}.forward_tasks: task 2 is not finished"):
            net.forward_tasks(x, tasks=[0, 2])
        for wrong in (3, -1, "0"):
            with pytest.raises(ValueError, match=f"{name}.forward_tasks: tasks has {wrong!r}"):
                net.forward_tasks(x, tasks=[wrong])
        with pytest.raises(ValueError, match="tasks is 1, wanted a list"):
            net.forward_tasks(x, tasks=1)
        net.train()
        with pytest.raises(RuntimeError, match=r"training mode, wanted net.eval\(\)"):
            net.forward_tasks(x)
