"""One batch under several tasks through a sequential model of linear layers."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
from torch import nn

from maskcl import HAT
from maskcl.nn import to_hat
from maskcl.nn.hat import task_forwards
from tests import tiny
from tests.helpers import TOLERANCE

TASKS = 4


def finished(model, shape, tasks=TASKS, done=TASKS, classes=3, share=0.5, seed=0):
    torch.manual_seed(seed)
    heads = None if classes is None else [classes] * tasks
    net = to_hat(model, tasks, torch.randn(2, *shape), classes=heads).eval()
    for task in range(done):
        with torch.no_grad():
            net.embeddings[task].copy_(share - torch.rand_like(net.embeddings[task]))
        net.finish_task(task)
    return net


def mlp(activation=nn.ReLU, bias=True, dropout=0.0):
    torch.manual_seed(1)
    hidden = [nn.Linear(12, 9, bias), activation(), nn.Dropout(dropout), nn.Linear(9, 8, bias)]
    last = [activation(), nn.Linear(8, 7, bias), nn.Tanh(), nn.Linear(7, 3, bias)]
    return nn.Sequential(nn.Flatten(), *hidden, *last)


def one_by_one(net, x, tasks):
    outputs = []
    for task in tasks:
        with net.task(task), torch.no_grad():
            outputs.append(net(x))
    return outputs


def assert_same(net, x, tasks=None):
    found = net.forward_tasks(x, tasks=tasks)
    wanted = one_by_one(net, x, range(TASKS) if tasks is None else tasks)
    assert len(found) == len(wanted)
    scale = TOLERANCE[wanted[0].dtype] * 2
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=scale, atol=scale)
        assert not a.requires_grad


@pytest.fixture
def cuts(monkeypatch):
    """Tasks whose weights were cut out, one by one."""
    found = []
    inner = task_forwards._cut_out
    monkeypatch.setattr(
        task_forwards, "_cut_out", lambda *args: (found.append(args[-1]), inner(*args))[1]
    )
    return found


@pytest.mark.parametrize("classes", [3, None], ids=["heads", "one output layer"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_values_are_those_of_each_task_s_forward(cuts, share, bias, classes):
    net = finished(mlp(bias=bias, dropout=0.3), (3, 4), classes=classes, share=share)
    assert_same(net, torch.randn(5, 3, 4))
    assert cuts == list(range(TASKS))


@pytest.mark.parametrize(
    "activation", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Hardswish]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_activation_and_dtype(cuts, activation, dtype):
    net = finished(mlp(activation), (12,))
    assert_same(net.to(dtype), torch.randn(5, 12, dtype=dtype))
    assert cuts == list(range(TASKS))


@pytest.mark.parametrize("seed", range(12))
def test_random_networks(cuts, seed):
    chance = random.Random(seed)
    widths = [chance.randint(1, 20) for _ in range(chance.randint(2, 5))]
    modules = []
    for inputs, outputs in pairwise(widths):
        kind = chance.choice([nn.ReLU, nn.Sigmoid, nn.Softsign, nn.GELU])
        modules += [nn.Linear(inputs, outputs, chance.random() < 0.7), kind()]
    model = nn.Sequential(*modules, nn.Linear(widths[-1], 2))
    tasks, classes = chance.randint(1, 9), chance.choice([2, None])
    options = {"tasks": tasks, "done": tasks, "classes": classes, "share": chance.random()}
    net = finished(model, widths[:1], seed=seed, **options)
    assert_same(net, torch.randn(chance.randint(0, 9), widths[0]), tasks=range(tasks))
    assert cuts == list(range(tasks))


@pytest.mark.parametrize("shape", [(12,), (0, 12), (2, 5, 12), (3, 0, 12)], ids=str)
def test_any_leading_dimensions(cuts, shape):
    net = finished(mlp()[1:], (12,))
    assert_same(net, torch.randn(shape))
    assert cuts == list(range(TASKS))


def test_any_tasks_in_any_order_and_each_keeps_its_bits(cuts):
    net, x = finished(mlp(), (12,), done=3), torch.randn(33, 12)
    whole = net.forward_tasks(x)
    again = net.forward_tasks(x, tasks=(2, 0, 2))
    for task, found in zip((2, 0, 2), again, strict=True):
        assert torch.equal(found, whole[task])
    assert net.forward_tasks(x, tasks=[]) == []
    for layer in (net.model[1], net.model[4]):  # as a later task would, where nothing is protected
        with torch.no_grad():
            layer.weight[~net.used()[net.units["1" if layer is net.model[1] else "4"]]] = 9.0
    net.finish_task(3)
    for before, after in zip(whole, net.forward_tasks(x), strict=False):
        assert torch.equal(before, after)


def test_a_network_without_finished_tasks_gives_nothing():
    assert finished(mlp(), (12,), done=0).forward_tasks(torch.randn(5, 12)) == []


def test_what_a_closed_unit_holds_does_not_matter():
    net, x = finished(mlp(), (12,)), torch.randn(5, 12)
    before = net.forward_tasks(x, tasks=[0])
    closed = ~net.hard_mask(0)[net.units["1"]]
    with torch.no_grad():
        net.model[1].weight[closed] = float("nan")
        net.model[4].weight[:, closed] = float("inf")
    assert torch.equal(net.forward_tasks(x, tasks=[0])[0], before[0])


def written(net):
    with torch.no_grad():
        net.model[4].weight.mul_(2)
    return net


def loaded(net):
    net.load_state_dict(
        {k: v * 2 for k, v in net.state_dict().items() if v.is_floating_point()}, strict=False
    )
    return net


def assigned(net):
    state = {k: v * 2 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    return net.eval()


def moved(net):
    net.model[4].weight.data = net.model[4].weight.data * 2
    return net


def finished_otherwise(net):
    net.forget_task(0)
    with torch.no_grad():
        net.embeddings[0].neg_()
    net.finish_task(0)
    return net


def with_another_head(net):
    net.model[-1].heads[1] = nn.Linear(7, 3)
    return net


@pytest.mark.parametrize(
    "change",
    [
        written,
        loaded,
        assigned,
        moved,
        finished_otherwise,
        with_another_head,
        copy.deepcopy,
        lambda net: net.double().float(),
    ],
)
def test_what_is_kept_follows_what_it_came_from(cuts, change):
    net, x = finished(mlp(), (12,)), torch.randn(5, 12)
    net.forward_tasks(x)
    net = change(net)
    assert_same(net, x)
    net.forward_tasks(x)
    assert cuts == list(range(TASKS)) * 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    "method",
    [HAT(sparsity=0.05), HAT(sparsity=0.05, rule="const", rule_value=0.5)],
    ids=["hat", "const"],
)
def test_old_tasks_keep_their_bits_in_training_or_the_change_is_seen(method, optimizer):
    net = tiny.network(tasks=3)
    x = tiny.samples(0, seed=1)[0]
    tiny.train_task(net, method, 0, tiny.OPTIMIZERS[optimizer])
    before = net.eval().forward_tasks(x)
    assert (before[0].std(0) > 0).any()
    for finish in (False, True):
        tiny.train_task(net, method, 1, tiny.OPTIMIZERS[optimizer], finish=finish)
        after = net.eval().forward_tasks(x, tasks=[0])
        torch.testing.assert_close(after, one_by_one(net, x, [0]), rtol=1e-5, atol=1e-5)
        assert torch.equal(before[0], after[0]) == (method.rule == "hat")


def test_weights_that_are_wholly_used_are_not_copied():
    net = finished(mlp(), (12,), share=1.0)
    net.forward_tasks(torch.randn(5, 12))
    _, weights = net._state.cache["task forwards"].parts[2]
    assert weights[0][0].data_ptr() == net.model[4].weight.data_ptr()


def test_in_inference_mode_and_training_goes_on_behind_it(cuts):
    net, x = finished(mlp(), (12,), done=2), torch.randn(5, 12)
    with torch.inference_mode():
        found = net.forward_tasks(x)
    torch.testing.assert_close(found, one_by_one(net, x, [0, 1]), rtol=1e-5, atol=1e-6)
    net.begin_task(2)
    with net.task(2, 3.0):
        net(x).sum().backward()
    assert net.model[1].weight.grad is not None
    assert cuts == [0, 1]


def test_threads_and_an_active_task_keep_to_themselves():
    net, x = finished(mlp(), (12,)), torch.randn(5, 12)
    wanted = net.forward_tasks(x)
    net._state.cache.clear()
    with net.task(3), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: net.forward_tasks(x), range(32)))
        assert net._state.task == 3
    assert all(torch.equal(a, b) for outputs in found for a, b in zip(outputs, wanted, strict=True))


def hooked(net):
    seen = []
    net.model[4].register_forward_hook(lambda m, args, out: seen.append(out.shape))
    return seen


def test_hooks_see_every_task_s_call(cuts):
    net, x = finished(mlp(), (12,)), torch.randn(5, 12)
    seen = hooked(net)
    assert_same(net, x)
    assert seen == [(5, 8)] * 2 * TASKS
    assert cuts == []


def test_autocast_is_followed(cuts):
    net, x = finished(mlp(), (12,)), torch.randn(5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(net, x)
    assert cuts == []


@pytest.mark.parametrize("x", [torch.randn(5, 11), torch.randn(5, 12).double(), torch.tensor(1.0)])
def test_wrong_input_raises_as_in_a_forward(x):
    net = finished(mlp()[1:], (12,))
    with pytest.raises((IndexError, RuntimeError, TypeError, ValueError)) as wanted, net.task(0):
        net(x)
    with pytest.raises(type(wanted.value)) as found:
        net.forward_tasks(x)
    assert str(found.value) == str(wanted.value)


def test_another_number_of_arguments_is_refused():
    with pytest.raises(ValueError, match="2 arguments, and the model was followed with 1"):
        finished(mlp(), (12,)).forward_tasks(torch.randn(5, 12), torch.randn(5, 12))
