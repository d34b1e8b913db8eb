"""HAT's hyper-parameters and hooks."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from maskcl.methods import HAT, PlanWarning, derive_seed
from maskcl.nn import to_hat
from maskcl.problems import Vision
from maskcl.settings import CLASS, DOMAIN, TASK, TIME, get_setting
from tests import tiny


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"s_max": 0.5}, "s_max is 0.5, wanted a finite number at least 1"),
        ({"s_max": float("nan")}, "s_max is nan"),
        ({"s_max": "400"}, "s_max is '400'"),
        ({"sparsity": -0.1}, "sparsity is -0.1, wanted a finite number at least 0"),
        ({"sparsity": float("inf")}, "sparsity is inf"),
        ({"embedding_clamp": 0}, "embedding_clamp is 0, wanted a finite number above 0"),
        ({"cosh_clamp": -1}, "cosh_clamp is -1"),
        ({"clip": 0.0}, "clip is 0.0"),
        ({"schedule": "linea"}, "schedule is 'linea', wanted one of linear, cosine"),
        ({"init": "zeros"}, "init is 'zeros', wanted one of normal, uniform, dense"),
        ({"protection": "max"}, "protection is 'max', wanted one of exact, min"),
        ({"rule": "ada"}, "rule is 'ada', wanted one of hat, const, adahat, random"),
        ({"compensation": "cosh"}, "compensation is 'cosh', wanted one of exact, recipe, none"),
        ({"rule": "const"}, "rule_value is None, wanted a finite number at least 0"),
        ({"rule": "const", "rule_value": 1.5}, "rule_value is 1.5, wanted at most 1"),
        ({"rule": "adahat", "rule_value": 0}, "rule_value is 0, wanted a finite number above 0"),
        ({"rule_value": 0.5}, "rule_value is 0.5, wanted None for rule 'hat'"),
    ],
)
def test_wrong_values_are_named(arguments, found):
    with pytest.raises(ValueError, match="HAT: ") as error:
        HAT(**arguments)
    assert found in str(error.value)


def test_a_misspelled_name_is_refused():
    with pytest.raises(TypeError, match="smax"):
        HAT(smax=100)


def test_hyper_parameters_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HAT().s_max = 1.0


def test_settings_that_hide_the_task_are_refused_with_a_sentence():
    for setting in (TASK, DOMAIN):
        assert HAT().not_supported_reasons(Vision(), setting) == []
    for setting in (CLASS, TIME):
        (reason,) = HAT().not_supported_reasons(Vision(), setting)
        assert f"the {setting.name} setting" in reason
    assert get_setting("domain") is DOMAIN
    assert get_setting(TASK) is TASK
    with pytest.raises(ValueError, match="setting is 'klass', wanted one of task, class"):
        get_setting("klass")


def gradients(method: HAT, task: int = 1) -> tuple[list[torch.Tensor], object]:
    """The shared weights' gradients of ones after the method's hook, task 0 finished before."""
    net = tiny.network(tasks=3)
    net.finish_task(0)
    state = method.begin_task(net, task)
    for p in net.task_parameters(task):
        p.grad = torch.ones_like(p)
    method.after_backward(net, state)
    return [p.grad for p in state.protection.parameters], state


def test_each_rule_does_to_protected_gradients_what_it_says():
    hat, state = gradients(HAT())
    share = state.protection.fraction()
    assert min(share.values()) > 0
    assert max(share.values()) < 1
    const, _ = gradients(HAT(rule="const", rule_value=0.25))
    adahat, _ = gradients(HAT(rule="adahat", rule_value=0.5))
    random, _ = gradients(HAT(rule="random"))
    for zero, quarter, third, drawn in zip(hat, const, adahat, random):
        protected = zero == 0
        assert (zero[~protected] == 1).all()
        assert (quarter == torch.where(protected, 0.25, 1.0)).all()
        torch.testing.assert_close(third, torch.where(protected, 1 / 3, 1.0))
        assert (drawn[~protected] == 1).all()
        assert ((drawn[protected] >= 0) & (drawn[protected] < 1)).all()


def test_the_random_rule_draws_anew_each_step_and_the_same_for_a_seed():
    net = tiny.network(tasks=3)
    net.finish_task(0)
    method = HAT(rule="random")
    state = method.begin_task(net, 1, seed=5)
    weight = state.protection.parameters[0]
    draws = []
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        method.after_backward(net, state)
        draws.append(weight.grad.clone())
    again, _ = gradients(method)
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(gradients(method)[0][0], again[0])
    assert not torch.equal(again[0], draws[0])


def test_min_protects_at_least_what_exact_does():
    exact, _ = gradients(HAT(protection="exact"))
    least, _ = gradients(HAT(protection="min"))
    assert all(bool(((a == 0) <= (b == 0)).all()) for a, b in zip(exact, least))


def test_only_the_hat_rule_guards_the_optimizer():
    net = tiny.network()
    for method, guarded in ((HAT(), True), (HAT(rule="const", rule_value=0.1), False)):
        state = method.begin_task(net, 0)
        optimizer = torch.optim.SGD(net.task_parameters(0), lr=0.1)
        assert (method.protect(optimizer, net, state) is not None) == guarded


def test_decay_on_the_embedding_is_warned_of():
    net, method = tiny.network(), HAT()
    state = method.begin_task(net, 0)
    everything = torch.optim.AdamW(net.task_parameters(0), lr=0.1)
    with pytest.warns(PlanWarning, match="weight decay on the task's embedding"):
        method.check_plan(net, state, everything, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.check_plan(net, state, torch.optim.AdamW(method.parameter_groups(net, 0)), 10)


def test_clip_comes_after_the_clamp():
    """Protected gradients do not count in the norm."""
    clipped, state = gradients(HAT(clip=1.0))
    net_grads = torch.cat([g.flatten() for g in clipped])
    assert float(net_grads.norm()) < 1.0
    plain, _ = gradients(HAT())
    kept = sum(int((g != 0).sum()) for g in plain)
    largest = max(float(g.max()) for g in clipped)
    assert largest > (sum(g.numel() for g in plain) + 1000) ** -0.5
    assert kept < sum(g.numel() for g in plain)
    assert state.steps == 1


def test_a_begun_task_trains_what_is_its_own_and_nothing_else():
    net = tiny.network("conv", tasks=3)
    HAT().begin_task(net, 1)
    own = {id(p) for p in net.task_parameters(1)}
    for name, p in net.named_parameters():
        assert p.requires_grad == (id(p) in own), name


def test_sparsity_is_the_share_of_free_units():
    net = tiny.network(tasks=3)
    net.finish_task(0)
    used = net.used()
    method = HAT(sparsity=2.0)
    state = method.begin_task(net, 1)
    method.before_step(net, state, 0.4)
    x, _ = tiny.samples(0)
    with net.task(1, state.scale):
        net(x)
        term = method.loss_term(net, state)
    mask = torch.sigmoid(state.scale * net.embeddings[1].detach())
    assert float(term.detach()) == pytest.approx(2.0 * float(mask[~used].mean()), rel=1e-5)


def test_the_state_goes_through_a_checkpoint():
    net = tiny.network()
    state = HAT().begin_task(net, 1, seed=7)
    state.steps = 12
    other = HAT().begin_task(net, 1)
    other.load_state_dict(state.state_dict())
    assert (other.steps, other.seed) == (12, 7)
    third = HAT().begin_task(net, 2)
    with pytest.raises(ValueError, match="found task 1, wanted 2"):
        third.load_state_dict(state.state_dict())


def test_derived_seeds_depend_on_every_part():
    seeds = {derive_seed(p, s, t) for p in ("a", "b") for s in range(10) for t in range(10)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("shuffle", 0, 1, 2) == 4232069763614704775


@pytest.mark.parametrize(("closed", "warns"), [(0, True), (1, False)])
def test_a_task_that_finds_no_room_is_told_so(closed, warns):
    """One unit of forty is 2.5 %: that is still room."""
    layers = [torch.nn.Linear(3, 40), torch.nn.ReLU(), torch.nn.Linear(40, 2)]
    net = to_hat(torch.nn.Sequential(*layers), 3, torch.ones(1, 3), classes=[2, 2, 2])
    with torch.no_grad():
        net.embeddings[0].fill_(1.0)
        net.embeddings[0][:closed] = -1.0
    net.finish_task(0)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        HAT().begin_task(net, 1)
    said = [str(w.message) for w in found if w.category is PlanWarning]
    assert len(said) == warns
    if warns:
        assert "task 1 begins with 0 of 40 units free" in said[0]
        assert "net.grow(units)" in said[0]
        assert found[0].filename == __file__
