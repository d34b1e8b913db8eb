import importlib
import sys

import pytest
import torch

import maskcl
from maskcl.integrations.task_training import Regrouped, TaskTraining
from tests.integrations.small_tasks import learn, network


def begun(name, method, **settings):
    """A run of the second task and an optimizer that was made for all parameters before."""
    net = network(name)
    learn(method, net, 0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, **settings)
    return TaskTraining(method, net, 1), optimizer


def test_an_optimizer_of_all_is_on_the_tasks_parameters_and_has_all_back():
    run, optimizer = begun("hat", maskcl.HAT(), weight_decay=0.1)
    everything = list(optimizer.param_groups[0]["params"])
    held = optimizer.param_groups[0]["params"]
    groups = run.method.parameter_groups(run.net, 1)
    regrouped = Regrouped("test", optimizer, groups)
    decayed, bare = optimizer.param_groups
    assert decayed["params"] is held  # LBFGS keeps the list
    assert {*decayed["params"], *bare["params"]} == set(run.net.task_parameters(1))
    assert bare["params"] == [run.net.embeddings[1]]
    assert bare["weight_decay"] == 0 and decayed["weight_decay"] == 0.1
    decayed["lr"] = 0.5
    regrouped.undo()
    assert optimizer.param_groups[0]["params"] == everything and len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["lr"] == 0.5  # as a scheduler left it


def test_groups_of_ones_own_keep_their_rates_and_moments_are_new():
    net = network("hat")
    learn(maskcl.HAT(), net, 0)
    first, *rest = net.parameters()
    optimizer = torch.optim.Adam([{"params": [first], "lr": 0.5}, {"params": rest}], lr=0.01)
    optimizer.state[first]["exp_avg"] = torch.ones_like(first)
    run = TaskTraining(maskcl.HAT(), net, 1)
    Regrouped("test", optimizer, run.method.parameter_groups(net, 1))
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.pop(first, 0.5) == 0.5 and set(rates.values()) == {0.01}
    assert not optimizer.state


def test_scores_that_came_with_the_task_are_in_the_first_group_with_the_methods_rate():
    run, optimizer = begun("piggyback", maskcl.Piggyback(lr=0.02))
    Regrouped("test", optimizer, run.method.parameter_groups(run.net, 1))
    rates = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert all(rates[score] == 0.02 for score in run.net.scores())


def test_a_scheduler_that_counts_groups_is_not_outgrown():
    run, optimizer = begun("hat", maskcl.HAT(), weight_decay=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    groups = run.method.parameter_groups(run.net, 1)
    with pytest.raises(ValueError, match="has a scheduler and 1 groups, and the task needs 2"):
        Regrouped("test", optimizer, groups)
    plain = torch.optim.Adam(run.net.parameters(), lr=0.01)  # no decay: one group will do
    torch.optim.lr_scheduler.StepLR(plain, 1)
    Regrouped("test", plain, groups)
    assert len(plain.param_groups) == 1


def test_a_scheduled_rate_is_still_the_methods():
    net, method = network("piggyback"), maskcl.Piggyback(lr=0.02)
    groups = method.parameter_groups(net, 0)
    optimizer = torch.optim.AdamW(groups[::-1], lr=0.01, weight_decay=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.param_groups[1]["lr"] = 0.002  # as the scheduler has it by now
    run = TaskTraining(method, net, 0)
    Regrouped("test", optimizer, method.parameter_groups(net, 0))
    decayed, scores = optimizer.param_groups
    assert set(scores["params"]) == set(net.scores()) and scores["lr"] == 0.002
    assert {*decayed["params"], *scores["params"]} == set(run.net.task_parameters(0))


def test_an_optimizer_that_knows_no_decay_needs_no_group_without():
    run, _ = begun("hat", maskcl.HAT())
    optimizer = torch.optim.Rprop(run.net.parameters())
    Regrouped("test", optimizer, run.method.parameter_groups(run.net, 1))
    assert len(optimizer.param_groups) == 1


def test_gradients_of_protected_weights_are_zero_for_whoever_clips():
    run, optimizer = begun("hat", maskcl.HAT())
    Regrouped("test", optimizer, run.method.parameter_groups(run.net, 1))
    run.protect([optimizer])
    run.before_step(0, 1, 0, 4)
    (run.forward(torch.rand(4, 8)).sum() + run.term).backward()
    before = [p.grad.clone() for p in run.state.protection.parameters if p.grad is not None]
    run.after_backward()
    after = [p.grad for p in run.state.protection.parameters if p.grad is not None]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    kept = [g.clone() for g in after]
    run.state.protection.clamp_()
    assert all(map(torch.equal, kept, after))


def test_release_gives_the_step_back():
    run, optimizer = begun("hat", maskcl.HAT())
    run.protect([optimizer])
    assert "step" in vars(optimizer) and run.holds([optimizer])
    run.release()
    assert "step" not in vars(optimizer) and not run.holds([optimizer])


def test_a_library_that_is_missing_is_named_by_its_own_module_alone(monkeypatch):
    missing = {"lightning", "pytorch_lightning", "avalanche", "models"}
    for name in {*missing, *(name for name in sys.modules if name.partition(".")[0] in missing)}:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "maskcl.integrations", raising=False)
    importlib.import_module("maskcl.integrations")
    wanted = {"lightning": "install lightning", "avalanche": "avalanche-lib", "mammoth": "checkout"}
    for stem, what in wanted.items():
        monkeypatch.delitem(sys.modules, f"maskcl.integrations.{stem}", raising=False)
        monkeypatch.delitem(sys.modules, "maskcl.integrations.masked_model", raising=False)
        with pytest.raises(ImportError, match=what):
            importlib.import_module(f"maskcl.integrations.{stem}")
