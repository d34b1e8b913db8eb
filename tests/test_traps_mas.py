"""The traps that other implementations of MAS fell into, one test each, named for what is
right."""

from __future__ import annotations

import copy
import io
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import ops
from maskcl.importance import estimate
from maskcl.methods import EWC, MAS
from maskcl.nn import TaskHeads
from maskcl.nn.tasks.frozen_modules import FrozenNorm
from maskcl.settings import SETTINGS
from tests import tiny
from tests.importance.zoo import assert_same, batches, make, one_by_one

# --- measuring importances


@pytest.mark.parametrize("name", ["mlp", "convs", "transformer", "lstm"])
def test_the_batch_size_does_not_change_the_importances(name):
    model, x, y = make(name)
    wanted = estimate(model, batches(x, y, 1))
    for size in (2, 7):
        assert_same(estimate(model, batches(x, y, size)), wanted)


def test_importances_are_means_of_absolute_gradients_not_absolutes_of_means():
    model, x, _ = make("mlp")
    found, wanted = estimate(model, [x]), one_by_one(model, x)
    assert_same(found, wanted)
    model.eval()(x).square().sum(1).mean().backward()
    of_mean = torch.cat([p.grad.abs().flatten() for p in model.parameters()]).sum()
    # They are not close: the gradients of samples cancel.
    assert of_mean < 0.9 * torch.cat([t.flatten() for t in found.values()]).sum()


def test_the_batch_version_does_depend_on_the_batches():
    """Which is why it has to be asked for."""
    model, x, y = make("mlp")
    one = estimate(model, batches(x, y, 1), reduction="batch")
    assert_same(one, estimate(model, batches(x, y, 4)))
    with pytest.raises(AssertionError):
        assert_same(estimate(model, batches(x, y, 7), reduction="batch"), one)


def test_the_pass_is_in_evaluation_mode():
    """No dropout, running statistics read and not moved, and training goes on as it did."""
    model, x, y = make("convs")
    assert model.training
    before = {key: t.clone() for key, t in model.state_dict().items()}
    wanted = one_by_one(model, x)  # in evaluation mode
    assert_same(estimate(model, batches(x, y, 4)), wanted)
    assert model.training and all(m.training for m in model.modules())
    for key, t in model.state_dict().items():
        assert torch.equal(t, before[key])


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_the_last_partial_batch_weighs_by_its_samples(reduction):
    """Seven samples in batches of six and one; the last one's gradients are the largest."""
    model, x, _ = make("mlp")
    x[6] *= 10
    parts = [estimate(model, [part], reduction=reduction) for part in x.split(6)]
    wanted = {name: (6 * parts[0][name] + parts[1][name]) / 7 for name in parts[0]}
    found = estimate(model, list(x.split(6)), reduction=reduction)
    assert_same(found, wanted)
    of_batches = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    with pytest.raises(AssertionError):
        assert_same(found, of_batches, 0.1)


def test_samples_are_the_rows_of_the_outputs_not_the_length_of_a_mask():
    """Outputs of the chosen rows alone: their number is what the mean is over."""
    model, x, _ = make("mlp")
    mask = torch.tensor([True, False, True, True, False, False, True])
    chosen = estimate(model, [x], forward=lambda net, x: (net(x[mask]), None))
    assert_same(chosen, one_by_one(model, x[mask]))


class Masked(nn.Module):
    """Logits of classes that are not there are set to, or lowered by, a huge number."""

    def __init__(self, number, add):
        super().__init__()
        self.model = make("mlp")[0]
        self.number, self.add = number, add
        self.register_buffer("absent", torch.tensor([False, True, False, True]))

    def forward(self, x):
        logits = self.model(x)
        if self.add:
            return logits + torch.zeros_like(logits).masked_fill(self.absent, self.number)
        return logits.masked_fill(self.absent, self.number)


@pytest.mark.parametrize("add", [False, True], ids=["filled", "added"])
@pytest.mark.parametrize("number", [-torch.inf, torch.finfo(torch.float64).min])
def test_masked_logits_are_left_out_of_the_norm_and_of_the_softmax(number, add):
    model = Masked(number, add)
    _, x, _ = make("mlp")
    y = torch.tensor([0, 2, 2, 0, 0, 2, 0])

    def present(net, batch):
        return net.model(batch[0])[:, [0, 2]], batch[1] // 2

    for options in ({"norm": "sum"}, {"norm": "mean"}, {"kind": "fisher"}):
        found = estimate(model, batches(x, y, 3), **options)
        assert_same(found, estimate(model, batches(x, y, 3), forward=present, **options))
        assert all(t.isfinite().all() for t in found.values())
    with pytest.raises(ValueError, match="a class whose output is masked"):
        estimate(model, [(x, torch.ones_like(y))], kind="fisher")


def test_half_precision_counts_outputs_whose_square_it_cannot_hold():
    """300 squared is infinite in float16 and no mask; its lowest number is one."""
    model = nn.Linear(3, 3, bias=False)
    x = torch.eye(3) * 300

    def forward(net, x):
        return net(x).half(), None

    model.weight.data.copy_(torch.eye(3))
    assert estimate(model, [x], forward=forward)["weight"].diagonal().min() > 0

    def masked(net, x):
        out = net(x).half()
        return torch.cat([out[:, :2], out[:, 2:] * 0 + torch.finfo(torch.float16).min], 1), None

    assert estimate(model, [x], forward=masked)["weight"].diagonal()[2] == 0


def test_no_global_random_number_is_consumed():
    """Neither by the pass, nor by a model or data that draw: training goes on as without it."""

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x):
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(3)
            return self.layer(x)

    data = torch.utils.data.TensorDataset(torch.randn(7, 5), torch.randint(0, 4, (7,)))
    loader = torch.utils.data.DataLoader(data, batch_size=3, shuffle=True)
    model = Drawing()

    def following():
        return torch.rand(2).tolist(), np.random.rand(), random.random()  # noqa: NPY002

    for options in ({}, {"kind": "fisher", "labels": "sampled"}, {"reduction": "batch"}):
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        wanted = following()
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
        estimate(model, loader, **options)
        assert following() == wanted


def test_importances_are_the_same_on_every_run():
    model, x, y = make("transformer", torch.float32)
    first = estimate(model, batches(x, y, 4))
    torch.rand(5)
    second = estimate(model, batches(x, y, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_gradient_of_zero_and_an_unused_parameter_count_as_zero():
    """Peers stop at a parameter without a gradient, or at a value that happens to be 0."""
    model, x, _ = make("shared")
    found = estimate(model, [x])
    assert found["unused.weight"].abs().sum() == 0
    silent = nn.Linear(5, 4)
    nn.init.zeros_(silent.weight), nn.init.zeros_(silent.bias)
    assert F.mse_loss(silent(x.float()), torch.zeros(7, 4)) == 0
    assert not any(t.any() for t in estimate(silent, [x.float()]).values())


# --- the penalty

METHODS = {"MAS": MAS(strength=0.3), "EWC": EWC(strength=30.0)}


def learned(method, tasks: int = 1, *, setting: str = "task", model: str = "mlp", steps: int = 8):
    """A network of three tasks with the first ones learned."""
    net = tiny.importance(model, 3, setting=setting)
    for task in range(tasks):
        tiny.train_task(net, method, task, tiny.OPTIMIZERS["adam"], steps=steps)
    return net


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", METHODS)
def test_the_penalty_is_not_zero_after_the_first_task(name, setting):
    """Nor in the class-incremental setting, where peers' EWC was charged nothing."""
    method = METHODS[name]
    net = learned(method, setting=setting)
    state = method.begin_task(net, 1)
    method.after_backward(net, state)
    assert float(state.penalty) == 0  # nothing has moved yet
    tiny.train_task(net, method, 1, tiny.OPTIMIZERS["sgd"], steps=2, finish=False)
    net.zero_grad()
    method.after_backward(net, state)
    assert float(state.penalty) > 0
    assert all(net.model.get_parameter(n).grad.any() for n in net.names(heads=False))


@pytest.mark.parametrize("name", METHODS)
def test_the_first_task_is_charged_nothing(name):
    net, method = tiny.importance("mlp", 3), METHODS[name]
    state = method.begin_task(net, 0)
    x, y = tiny.samples(0)
    with net.task(0):
        F.cross_entropy(net(x), y).backward()
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    with torch.no_grad():
        net.model[1].weight += 1.0
    method.after_backward(net, state)
    assert float(state.penalty) == 0
    for parameter, gradient in zip(net.parameters(), before, strict=True):
        same = parameter.grad is None if gradient is None else torch.equal(parameter.grad, gradient)
        assert same


@pytest.mark.parametrize("optimizer", ["momentum", "adam-l2", "adamw"])
def test_the_penalty_is_a_gradient_like_any_other_to_every_optimizer(optimizer):
    """As if it had been a term of the loss: it goes through momentum and moments, and decay stays
    what it was. The original adds it inside its own optimizer."""
    method = METHODS["MAS"]
    nets = [learned(method) for _ in range(2)]
    tiny.train_task(nets[0], method, 1, tiny.OPTIMIZERS[optimizer], steps=6, finish=False)

    class InTheLoss(MAS):
        def loss_term(self, net, state):
            return self.strength * ops.mas_penalty(*net.anchored(state.names))

        def after_backward(self, net, state):
            pass

    other = InTheLoss(strength=method.strength)
    tiny.train_task(nets[1], other, 1, tiny.OPTIMIZERS[optimizer], steps=6, finish=False)
    for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
    unpulled = learned(method)
    tiny.train_task(unpulled, MAS(0.0), 1, tiny.OPTIMIZERS[optimizer], steps=6, finish=False)
    assert not torch.allclose(unpulled.model[1].weight, nets[0].model[1].weight, atol=1e-3)


@pytest.mark.parametrize("setting", ["task", "class", "domain"])
def test_heads_are_left_out_unless_asked_for(setting):
    plain, held = MAS(), MAS(heads=True)
    nets = [learned(method, 2, setting=setting) for method in (plain, held)]
    output = set(nets[0].names()) - set(nets[0].names(heads=False))
    assert len(output) == (0 if setting == "task" else 2)
    for net, method in zip(nets, (plain, held), strict=True):
        state = method.begin_task(net, 2)
        with torch.no_grad():
            for parameter in net.task_parameters(2):
                parameter += 0.1
        method.after_backward(net, state)
        for name in output:
            assert net.importances[name].any() == method.heads
            assert (net.model.get_parameter(name).grad is not None) == method.heads
        for name in net.names(heads=False):
            assert net.model.get_parameter(name).grad.any()


def test_a_tasks_own_head_is_skipped_before_during_and_after_its_task():
    net, method = learned(METHODS["MAS"], 2), METHODS["MAS"]
    heads = next(m for m in net.modules() if isinstance(m, TaskHeads))
    before = [copy.deepcopy(head.state_dict()) for head in heads.heads]
    tiny.train_task(net, method, 2, tiny.OPTIMIZERS["adamw"], finish=False)
    assert not any("heads" in name for name in net.importances)
    for task in range(2):
        assert all(p.grad is None for p in heads.heads[task].parameters())
        now = heads.heads[task].state_dict()
        assert all(torch.equal(now[k], v) for k, v in before[task].items())
    assert not torch.equal(heads.heads[2].weight, before[2]["weight"])


def test_online_decay_has_its_closed_form():
    """After T tasks: sum_t decay^(T - t) F_t, each F_t measured when its task ended."""
    method = EWC(strength=30.0, decay=0.6, anchors="last")
    net, alone = tiny.importance("mlp", 3), []
    for task in range(3):
        state = method.begin_task(net, task)
        tiny.train_task(net, method, task, tiny.OPTIMIZERS["adam"], steps=4, finish=False)
        names = [f"model.{name}" for name in net.names()]
        with net.task(task):
            found = estimate(net, [tiny.samples(task)], kind="fisher", parameters=names)
        alone.append(found)
        method.end_task(net, state, tiny.task_data(task))
    for name, omega in net.importances.items():
        f = [found[f"model.{name}"].double() for found in alone]
        wanted = 0.36 * f[0] + 0.6 * f[1] + f[2]
        torch.testing.assert_close(omega.double(), wanted, rtol=1e-5, atol=1e-12)
        assert f[0].any() and f[1].any()


def test_what_was_measured_shares_no_memory_with_what_is_kept():
    """Importances and anchors of a task stay what they are while later tasks train."""
    net, method = learned(METHODS["MAS"]), METHODS["MAS"]
    kept = copy.deepcopy({**net.importances, **{f"at {n}": a for n, a in net.anchors.items()}})
    tiny.train_task(net, method, 1, tiny.OPTIMIZERS["adam"], finish=False)
    now = {**net.importances, **{f"at {n}": a for n, a in net.anchors.items()}}
    assert all(torch.equal(now[name], tensor) for name, tensor in kept.items())
    places = [t.untyped_storage().data_ptr() for t in (*now.values(), *net.parameters())]
    assert len(set(places)) == len(places)
    method.end_task(net, method.begin_task(net, 1), tiny.task_data(1))
    for name, omega in net.importances.items():
        assert bool((omega >= kept[name]).all())
        assert bool((omega > kept[name]).any())


@pytest.mark.parametrize("setting", ["task", "class"])
def test_importances_and_anchors_travel_in_the_state_dict(setting):
    """A fresh network with a stored state learns the next task to the same bits."""
    method = EWC(strength=30.0)
    net = learned(method, 2, setting=setting, model="conv")
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = tiny.importance("conv", 3, setting=setting)
    fresh.load_state_dict(torch.load(file))
    for each in (net, fresh):
        data = tiny.task_data(2)
        state = method.begin_task(each, 2)
        assert state.anchored
        tiny.train_task(each, method, 2, tiny.OPTIMIZERS["adamw"], steps=3, finish=False)
        method.end_task(each, state, data)
    wanted = net.state_dict()
    assert all(torch.equal(t, wanted[name]) for name, t in fresh.state_dict().items())


def test_the_end_of_a_task_moves_no_statistics_and_no_mode():
    """Dropout is off while importances are measured, and running statistics stay.

    Those of the finished task's own norms stay from here on, in training mode too.
    """
    net, method = tiny.importance("conv", 3), METHODS["MAS"]
    state = method.begin_task(net, 0)
    net.train()
    before = {n: t.clone() for n, t in net.model.state_dict().items()}
    method.end_task(net, state, tiny.task_data(0))
    assert all(torch.equal(t, before[n]) for n, t in net.model.state_dict().items())
    resting = {module for module in net.modules() if not module.training}
    assert resting and all(isinstance(module, FrozenNorm) for module in resting)
    assert all(p.grad is None for p in net.parameters())


def test_a_loss_of_exactly_zero_is_no_error():
    """A peer stops with one; here the penalty then is all there is."""
    net, method = learned(METHODS["MAS"]), METHODS["MAS"]
    state = method.begin_task(net, 1)
    with torch.no_grad():
        net.model[1].bias += 1.0
    x, _ = tiny.samples(1)
    with net.task(1):
        loss = 0 * net(x).sum()
    loss.backward()
    method.after_backward(net, state)
    wanted = 0.6 * net.importances["1.bias"] * (net.model[1].bias - net.anchors["1.bias"])
    torch.testing.assert_close(net.model[1].bias.grad, wanted.detach())
