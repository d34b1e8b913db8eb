"""MAS's and EWC's hyper-parameters and hooks."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskcl import ops
from maskcl.methods import EWC, MAS, PlanWarning, TaskData
from maskcl.optim import FusedStep
from maskcl.problems import Vision
from maskcl.settings import SETTINGS
from maskcl.training.trainer import Trainer
from tests import tiny

METHODS = [MAS(strength=0.5), EWC(strength=50.0)]


def trained(method, tasks: int = 1, *, setting: str = "task", model: str = "mlp", steps: int = 10):
    """A network of three tasks with the first ones learned."""
    net = tiny.importance(model, 3, setting=setting)
    for task in range(tasks):
        tiny.train_task(net, method, task, tiny.OPTIMIZERS["adam"], steps=steps)
    return net


def backward(net, task: int) -> None:
    x, y = tiny.samples(task)
    with net.task(task):
        F.cross_entropy(net(x), y).backward()


def gradients(net) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def test_they_are_found_by_name_and_frozen():
    import maskcl

    assert (maskcl.MAS, maskcl.EWC) == (MAS, EWC)
    with pytest.raises(dataclasses.FrozenInstanceError):
        MAS().strength = 2.0
    with pytest.raises(TypeError, match="lamda"):
        EWC(lamda=1.0)


@pytest.mark.parametrize(
    ("kind", "arguments", "found"),
    [
        (MAS, {"strength": -1}, "strength is -1, wanted a finite number of at least 0"),
        (MAS, {"strength": float("inf")}, "strength is inf"),
        (MAS, {"reduction": "mean"}, "reduction is 'mean', wanted one of sample, batch"),
        (MAS, {"norm": "l1"}, "norm is 'l1', wanted one of sum, mean"),
        (EWC, {"decay": 1.1}, "decay is 1.1, wanted a number from 0 to 1"),
        (EWC, {"labels": "true"}, "labels is 'true', wanted one of data, predicted, sampled"),
        (EWC, {"anchors": "mean"}, "anchors is 'mean', wanted one of each, last"),
        (EWC, {"heads": 1}, "heads is 1, wanted True or False"),
    ],
)
def test_wrong_values_are_named(kind, arguments, found):
    with pytest.raises(ValueError, match=f"{kind.__name__}: ") as error:
        kind(**arguments)
    assert found in str(error.value)


def test_no_setting_is_refused():
    for setting in SETTINGS.values():
        for method in METHODS:
            assert method.not_supported_reasons(Vision(), setting) == []


def test_a_network_without_importances_is_refused():
    with pytest.raises(TypeError, match="net is a HATNetwork, wanted an ImportanceNetwork"):
        MAS().begin_task(tiny.network(), 0)


# --- a task


@pytest.mark.parametrize("method", METHODS, ids=["MAS", "EWC"])
def test_a_begun_task_trains_what_is_shared_and_its_own(method):
    net = trained(method)
    state = method.begin_task(net, 1)
    assert state.scale is None
    assert state.anchored
    (group,) = method.parameter_groups(net, 1)
    assert group.keys() == {"params"}
    own = {id(p) for p in group["params"]}
    assert own == {id(p) for p in net.task_parameters(1)}
    for name, p in net.named_parameters():
        assert p.requires_grad == (id(p) in own) == (".heads." not in name or ".heads.1" in name)
    optimizer = torch.optim.SGD([group], lr=0.1)
    handle = method.protect(optimizer, net, state)
    assert isinstance(handle, FusedStep)
    handle.remove()
    assert method.protect(torch.optim.RMSprop([group]), net, state) is None
    assert method.loss_term(net, state) == 0.0


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("heads", [False, True])
def test_the_gradient_added_is_autograds_of_the_penalty(setting, heads):
    method = MAS(strength=0.7, heads=heads)
    net = trained(method, setting=setting)
    state = method.begin_task(net, 1)
    tiny.train_task(net, method, 1, tiny.OPTIMIZERS["sgd"], steps=3, finish=False)
    names = net.names(heads=heads)
    lists = (
        [net.model.get_parameter(n) for n in names],
        *([d[n] for n in names] for d in (net.anchors, net.importances)),
    )
    penalty = method.strength * ops.mas_penalty(*lists)
    wanted = dict(zip(names, torch.autograd.grad(penalty, lists[0])))
    net.zero_grad()
    backward(net, 1)
    before = gradients(net)
    method.after_backward(net, state)
    after = gradients(net)
    torch.testing.assert_close(state.penalty, penalty.detach())
    assert float(state.penalty) > 0
    assert before.keys() == after.keys()
    for name, gradient in after.items():
        pull = wanted.get(name.removeprefix("model."))
        if pull is None:
            assert torch.equal(gradient, before[name])
        else:
            torch.testing.assert_close(gradient, before[name] + pull)
            assert name.startswith("model.6") or pull.any()


def test_a_parameter_out_of_the_losss_reach_is_pulled_back():
    net = trained(MAS())
    state = MAS().begin_task(net, 1)
    layer = net.model[1]
    with torch.no_grad():
        layer.weight += 1.0
    MAS(1.0).after_backward(net, state)
    omega = net.importances["1.weight"]
    torch.testing.assert_close(
        layer.weight.grad, 2 * omega * (layer.weight - net.anchors["1.weight"])
    )
    assert layer.weight.grad.any()
    assert net.model[6].heads[1].weight.grad is None


def replace_layer(net):
    net.model[1] = copy.deepcopy(net.model[1])


def replace_model(net):
    net.model = copy.deepcopy(net.model)
    net._state.bind(net.model)


def replace_parameter(net):
    net.model[1].weight = nn.Parameter(net.model[1].weight.detach().clone())


@pytest.mark.parametrize("change", [replace_layer, replace_model, replace_parameter])
@pytest.mark.parametrize("method", METHODS, ids=["MAS", "EWC"])
def test_what_replaces_a_parameter_is_charged_from_then_on(method, change):
    net = trained(method)
    state = method.begin_task(net, 1)
    method.after_backward(net, state)
    net.zero_grad()
    change(net)
    weight = net.model[1].weight
    with torch.no_grad():
        weight += 1.0
    method.after_backward(net, state)
    pull = 2 * method.strength * net.importances["1.weight"]
    torch.testing.assert_close(weight.grad, pull * (weight - net.anchors["1.weight"]).detach())
    assert weight.grad.any() and float(state.penalty) > 0


def delete_parameter(net):
    del net.model[1].weight


def parametrize(net):
    torch.nn.utils.parametrizations.weight_norm(net.model[1])


def delete_layer(net):
    net.model[1] = None


@pytest.mark.parametrize("change", [delete_parameter, parametrize, delete_layer])
def test_a_parameter_that_is_gone_is_named_at_every_step(change):
    net = trained(MAS())
    state = MAS().begin_task(net, 1)
    MAS().after_backward(net, state)
    change(net)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"no parameter '1\.weight' any more"):
            MAS().after_backward(net, state)


def test_an_anchor_that_is_gone_is_named_at_every_step():
    net = trained(MAS())
    state = MAS().begin_task(net, 1)
    MAS().after_backward(net, state)
    net.anchor.holder("1.weight")["weight"] = None
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"buffer for '1\.weight' was taken away"):
            MAS().after_backward(net, state)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("kind", [MAS, EWC])
def test_a_strength_of_0_is_plain_training_bit_for_bit(kind, optimizer):
    class Plain(kind):
        def after_backward(self, net, state):
            pass

    runs = []
    for method in (kind(strength=0.0), Plain(strength=1.0)):
        net = tiny.importance("dropout", 3)
        for task in range(2):
            torch.manual_seed(task)
            tiny.train_task(net, method, task, tiny.OPTIMIZERS[optimizer])
        runs.append(net.state_dict())
    assert all(torch.equal(v, runs[1][k]) for k, v in runs[0].items())


@pytest.mark.parametrize("setting", ["task", "domain"])
def test_an_earlier_tasks_outputs_change_less(setting):
    changes = []
    x, _ = tiny.samples(0, seed=1)
    for strength in (0.0, 0.05):
        method = MAS(strength)
        net = trained(method, setting=setting, steps=20)
        before = tiny.logits(net, 0, x)
        tiny.train_task(net, method, 1, tiny.OPTIMIZERS["adam"], steps=20)
        changes.append(float((tiny.logits(net, 0, x) - before).square().mean()))
    assert 0 < changes[1] < 0.5 * changes[0]


# --- EWC


def ewc_trained(method: EWC):
    """A network after two tasks, and (importances, parameters) of each task alone."""
    net, alone = tiny.importance("mlp", 3), []
    for task in range(2):
        state = method.begin_task(net, task)
        tiny.train_task(net, method, task, tiny.OPTIMIZERS["adam"], steps=6, finish=False)
        before = {n: o.clone() for n, o in net.importances.items()}
        method.end_task(net, state, tiny.task_data(task))
        added = {n: o - method.decay * before[n] for n, o in net.importances.items()}
        alone.append((added, {n: net.model.get_parameter(n).detach().clone() for n in added}))
    return net, alone


def test_one_anchor_pulls_as_every_tasks_own_does():
    method = EWC(strength=30.0)
    net, alone = ewc_trained(method)
    state = method.begin_task(net, 2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    method.after_backward(net, state)
    for name in net.names():
        now = net.model.get_parameter(name)
        wanted = sum(60.0 * f[name].double() * (now - w[name]).double() for f, w in alone)
        error = (now.grad.double() - wanted).detach().abs().max()
        assert float(error) <= 1e-6 * float(wanted.detach().abs().max())
        one = 60.0 * net.importances[name] * (now - alone[1][1][name])
        assert not torch.allclose(now.grad, one, rtol=1e-3)


def test_last_anchors_are_where_the_last_task_ended():
    net, alone = ewc_trained(EWC(anchors="last"))
    assert all(torch.equal(a, alone[1][1][n]) for n, a in net.anchors.items())


def test_sampled_labels_follow_the_seed():
    def importances(seed: int, noise: int) -> torch.Tensor:
        net, method = tiny.importance("mlp", 3), EWC(labels="sampled")
        torch.manual_seed(noise)
        state = method.begin_task(net, 0, seed=seed)
        before = torch.get_rng_state()
        method.end_task(net, state, tiny.task_data(0))
        assert torch.equal(torch.get_rng_state(), before)
        return net.importances["1.weight"]

    assert torch.equal(importances(0, 1), importances(0, 2))
    assert not torch.equal(importances(0, 1), importances(1, 1))


# --- the end of a task


def test_hyper_parameters_reach_the_estimate():
    def importance(method) -> torch.Tensor:
        net = tiny.importance("mlp", 3)
        method.end_task(net, method.begin_task(net, 0), tiny.task_data(0))
        return net.importances["1.weight"]

    plain = importance(MAS())
    torch.testing.assert_close(importance(MAS(norm="mean")), plain / tiny.CLASSES)
    batch = importance(MAS(reduction="batch"))
    assert bool((batch <= plain * 1.0001).all())
    assert float(batch.sum()) < 0.9 * float(plain.sum())
    found = [importance(EWC(labels=labels)) for labels in ("data", "predicted", "sampled")]
    assert not any(torch.equal(a, b) for a, b in ((plain, found[0]), found[:2], found[1:]))


def test_a_task_without_data_is_refused():
    net = tiny.importance()
    state = MAS().begin_task(net, 0)
    with pytest.raises(RuntimeError, match=r"MAS\.end_task: data is None, wanted a TaskData"):
        MAS().end_task(net, state)
    assert not net.finished.any()


def test_importances_that_hold_nothing_are_told_of():
    net = tiny.importance("mlp", 3)
    x, y = tiny.samples(0)
    nothing = TaskData(lambda: [(x, y)], lambda net, batch: (0 * net(batch[0]), batch[1]))
    state = MAS().begin_task(net, 0)
    with pytest.warns(PlanWarning, match="MAS: task 0: all importances are 0"):
        MAS().end_task(net, state, nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        MAS().end_task(net, MAS().begin_task(net, 1), tiny.task_data(1))


def test_measure_and_outlook():
    method = MAS(strength=2.0)
    net = trained(method)
    assert method.measure(net, 0)["drift"] == {}
    assert method.outlook(net, 1) == "penalty 0"
    method.begin_task(net, 1)
    with torch.no_grad():
        net.model[4].bias += 0.5
    expected = 2.0 * 0.25 * float(net.importances["4.bias"].sum())
    assert method.outlook(net, 1) == f"penalty {expected:.3g}"
    method.end_task(net, method.begin_task(net, 1), tiny.task_data(1))
    found = method.measure(net, 1)
    assert found["drift"] == pytest.approx(
        {"1.weight": 0, "1.bias": 0, "4.weight": 0, "4.bias": 0.5}
    )
    wanted = {n: float(o.mean()) for n, o in net.importances.items()}
    assert found["importance"] == pytest.approx(wanted)


def test_the_state_goes_through_a_checkpoint():
    net = trained(MAS())
    state = MAS().begin_task(net, 1, seed=7)
    again = MAS().begin_task(net, 1)
    again.load_state_dict(state.state_dict())
    assert again.seed == 7
    with pytest.raises(ValueError, match="found task 1, wanted 2"):
        MAS().begin_task(net, 2).load_state_dict(state.state_dict())


def test_a_loop_of_ones_own_on_an_ordinary_model():
    """As a user without trainer or scenario would: a shared head, two tasks, one penalty."""
    torch.manual_seed(0)
    from maskcl.nn import to_importance

    method, net = MAS(strength=0.5), to_importance(nn.Linear(4, 3), 2)
    x = torch.randn(8, 4)
    data = TaskData(lambda: [x[:5], x[5:]], lambda net, batch: (net(batch), None))
    assert net.names(heads=False) == []
    method = dataclasses.replace(method, heads=True)
    method.end_task(net, method.begin_task(net, 0), data)
    with net.task(0):
        outputs = net(x).detach()
    wanted = (2 * outputs).abs().T @ x.abs() / 8
    torch.testing.assert_close(net.importances["weight"], wanted)
    kept = copy.deepcopy(net.state_dict())
    state = method.begin_task(net, 1)
    method.after_backward(net, state)
    assert not net.model.weight.grad.any()
    assert torch.equal(net.state_dict()["anchor.weight"], kept["model.weight"])


# --- a penalty that makes SGD diverge --------------------------------------------------------


def steep(strength: float, momentum: float = 0.0) -> tuple[Any, Any, Any]:
    """A network whose largest importance is 4, and an SGD with a rate of 0.1."""
    net = tiny.importance("mlp", 2)
    new = {name: torch.zeros_like(o) for name, o in net.importances.items()}
    next(iter(new.values())).view(-1)[0] = 4.0
    net.consolidate(0, new)
    net.finish_task(0)
    method = MAS(strength=strength)
    state = method.begin_task(net, 1)
    optimizer = torch.optim.SGD(method.parameter_groups(net, 1), lr=0.1, momentum=momentum)
    return net, method, (state, optimizer)


@pytest.mark.parametrize(("strength", "momentum"), [(2.6, 0.0), (4.9, 0.9)])
def test_a_strength_that_sgd_overshoots_on_is_warned_of_before_it_trains(
    strength: float, momentum: float
) -> None:
    net, method, (state, optimizer) = steep(strength, momentum)
    with pytest.warns(PlanWarning, match="the penalty makes SGD diverge: .* wanted a strength"):
        method.check_plan(net, state, optimizer, 10)
    assert "wanted a strength below" in method.explain_divergence(net, optimizer)


@pytest.mark.parametrize(("strength", "momentum"), [(2.4, 0.0), (4.6, 0.9)])
def test_one_that_it_can_follow_is_not(strength: float, momentum: float) -> None:
    net, method, (state, optimizer) = steep(strength, momentum)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.check_plan(net, state, optimizer, 10)
    assert method.explain_divergence(net, optimizer).startswith("; or a smaller strength than")


def test_the_bound_is_where_sgd_begins_to_diverge() -> None:
    """By running it: the distance from the anchor shrinks below the bound and grows above it."""
    for strength, diverges in ((2.4, False), (2.6, True)):
        net, method, (state, optimizer) = steep(strength)
        name = next(iter(net.importances))
        weight = net.get_parameter(f"model.{name}")
        with torch.no_grad():
            weight.view(-1)[0] += 1.0
        for _ in range(20):
            optimizer.zero_grad()
            method.after_backward(net, state)
            optimizer.step()
        distance = float((weight - net.anchors[name]).detach().abs().max())
        assert (distance > 1.0) == diverges


def test_a_loss_that_the_penalty_made_infinite_names_the_strength() -> None:
    net = tiny.importance("mlp", 2)
    trainer = Trainer(
        net, MAS(strength=1e9), Vision(), tiny.scenario(2),
        lambda p: torch.optim.SGD(p, lr=0.1), epochs=5, batch_size=8,
    )  # fmt: skip
    with (
        pytest.warns(PlanWarning, match="task 1: the penalty makes SGD diverge"),
        pytest.raises(RuntimeError, match=r"loss is nan in task 1.*strength 1e.09 x the largest"),
    ):
        trainer.fit()
