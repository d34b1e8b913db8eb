"""Piggyback's hyper-parameters and hooks."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

from maskcl.methods import Piggyback, PlanWarning
from maskcl.optim import FusedStep
from maskcl.problems import Vision
from maskcl.settings import CLASS, DOMAIN, TASK, TIME
from tests import tiny


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"threshold": float("nan")}, "threshold is nan, wanted a finite number"),
        ({"threshold": "0"}, "threshold is '0'"),
        ({"levels": "ternary", "threshold": -1e-3}, "threshold is -0.001, wanted a finite number"),
        ({"init": float("inf")}, "init is inf, wanted a finite number"),
        ({"init": 0.0, "spread": "uniform"}, "init is 0.0, wanted a finite number above 0"),
        ({"levels": "soft"}, "levels is 'soft', and a mask between 0 and 1 cannot be stored"),
        ({"levels": "four"}, "levels is 'four', wanted one of binary, ternary"),
        ({"spread": "normal"}, "spread is 'normal', wanted one of constant, uniform"),
        ({"inclusive": 1}, "inclusive is 1, wanted True or False"),
        ({"levels": "topk"}, "density is None, wanted a finite number above 0"),
        ({"levels": "topk", "density": 1.5}, "density is 1.5, wanted at most 1"),
        ({"density": 0.5}, "density is 0.5, wanted None for 'binary'"),
        ({"lr": 0.0}, "lr is 0.0, wanted a finite number above 0"),
        ({"score_dtype": "float16"}, "score_dtype is 'float16', wanted one of float32, bfloat16"),
        ({"head_lr": -1}, "head_lr is -1"),
    ],
)
def test_wrong_values_are_named(arguments, found):
    with pytest.raises(ValueError, match="Piggyback: ") as error:
        Piggyback(**arguments)
    assert found in str(error.value)
    assert "\n" not in str(error.value)


def test_hyper_parameters_are_frozen_and_the_papers():
    method = Piggyback()
    assert (method.threshold, method.init, method.levels) == (5e-3, 1e-2, "binary")
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.init = 1.0
    with pytest.raises(TypeError, match="treshold"):
        Piggyback(treshold=1.0)


def test_it_is_found_by_its_name():
    import maskcl

    assert maskcl.Piggyback is Piggyback


def test_settings_that_hide_the_task_are_refused_with_a_sentence():
    for setting in (TASK, DOMAIN):
        assert Piggyback().not_supported_reasons(Vision(), setting) == []
    for setting in (CLASS, TIME):
        (reason,) = Piggyback().not_supported_reasons(Vision(), setting)
        assert reason.startswith("Piggyback chooses the mask by the task")
        assert f"the {setting.name} setting" in reason


def test_a_network_of_other_levels_is_refused():
    net = tiny.piggyback(levels="ternary")
    with pytest.raises(ValueError, match="levels is 'binary', the network's are 'ternary'"):
        Piggyback().begin_task(net, 0)
    assert net.training_task is None


# --- how a task starts


@pytest.mark.parametrize("levels", ["binary", "ternary", "ternary_symmetric", "topk"])
def test_a_task_starts_with_every_weight_kept(levels):
    net = tiny.piggyback(levels=levels)
    method = Piggyback(levels=levels, density=0.5 if levels == "topk" else None)
    state = method.begin_task(net, 0)
    assert state.scale is None
    assert all((s == method.init).all() for s in net.scores())
    assert set(net.off(0).values()) == {0.0}
    assert method.outlook(net, 0) == "off 0.0 %"


def test_scores_depend_on_seed_and_task_alone():
    def start(seed: int, task: int) -> torch.Tensor:
        net = tiny.piggyback()
        torch.rand(seed + 1)
        Piggyback(spread="uniform").begin_task(net, task, seed=seed)
        return torch.cat([s.detach().flatten() for s in net.scores()])

    assert torch.equal(start(3, 1), start(3, 1))
    assert not torch.equal(start(3, 1), start(4, 1))
    assert not torch.equal(start(3, 1), start(3, 2))
    assert float(start(3, 1).abs().max()) <= 1e-2
    assert float(start(3, 1).min()) < 0


def test_a_begun_task_trains_what_is_its_own_and_nothing_else():
    net = tiny.piggyback("conv", norms="task")
    method = Piggyback()
    method.begin_task(net, 1)
    groups = method.parameter_groups(net, 1)
    own = {id(p) for group in groups for p in group["params"]}
    assert own == {id(p) for p in net.task_parameters(1)}
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in net.scores()}
    for name, p in net.named_parameters():
        assert p.requires_grad == (id(p) in own), name


# --- groups and rates


def test_scores_never_decay_and_rates_are_the_methods_where_it_has_them():
    net = tiny.piggyback()
    for method, rates in ((Piggyback(), (0.1, 0.1)), (Piggyback(lr=1e-4, head_lr=2e-3), None)):
        method.begin_task(net, 0)
        optimizer = torch.optim.AdamW(method.parameter_groups(net, 0), lr=0.1, weight_decay=0.2)
        scores, rest = optimizer.param_groups
        assert scores["weight_decay"] == 0.0
        assert rest["weight_decay"] == 0.2
        assert (scores["lr"], rest["lr"]) == (rates or (1e-4, 2e-3))


def test_groups_have_the_same_settings_before_a_task():
    """What a run depends on is described before the first task and inside any."""
    net, method = tiny.piggyback(), Piggyback(lr=1e-4)

    def settings() -> list[dict]:
        groups = method.parameter_groups(net, 0)
        return [{k: v for k, v in g.items() if k != "params"} for g in groups]

    before = settings()
    assert method.parameter_groups(net, 0)[0]["params"] == []
    torch.optim.Adam(method.parameter_groups(net, 0))
    method.begin_task(net, 0)
    assert settings() == before
    assert method.parameter_groups(net, 0)[0]["params"] == net.scores() != []


# --- what tells that no mask can be learned


def plan(method: Piggyback, steps: int, *, kind=torch.optim.Adam, **options) -> list[str]:
    """What is warned of before a task of so many steps."""
    net = tiny.piggyback(levels=method.levels)
    state = method.begin_task(net, 0)
    optimizer = kind(method.parameter_groups(net, 0), **options)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        method.check_plan(net, state, optimizer, steps)
    assert all(w.category is PlanWarning for w in found)
    return [str(w.message) for w in found]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_plan_in_which_no_score_can_cross_is_told_with_its_numbers(kind):
    (told,) = plan(Piggyback(), 100, kind=kind, lr=1e-5)
    for part in (
        "task 0: no score can cross the threshold",
        "start 0.005 from it (threshold 0.005, init 0.01)",
        f"{kind.__name__} moves one by about its rate",
        "1e-05 x 100 steps = 0.001",
        "a rate of at least 5e-05",
    ):
        assert part in told
    assert "\n" not in told


def test_the_papers_plan_needs_fifty_steps():
    """Adam at 1e-4, from 1e-2 to 5e-3."""
    assert plan(Piggyback(), 51, lr=1e-4) == []
    assert len(plan(Piggyback(), 49, lr=1e-4)) == 1


def test_the_scores_own_rate_counts():
    assert plan(Piggyback(lr=1e-3), 10, lr=1e-9) == []
    assert len(plan(Piggyback(lr=1e-9), 10, lr=1e-3)) == 1


def test_plans_of_which_nothing_is_known_are_not_told_of():
    assert plan(Piggyback(), 1, kind=torch.optim.SGD, lr=1e-9) == []
    assert plan(Piggyback(levels="topk", density=0.5), 1, lr=1e-9) == []
    # Somewhere between -0.01 and 0.01 a score is within 2e-4 of the threshold.
    assert plan(Piggyback(spread="uniform"), 100, lr=2e-6) == []


@pytest.mark.parametrize(
    ("levels", "threshold", "init", "gap"),
    [("binary", 0.01, 0.002, 0.008), ("ternary", 0.01, 0.002, 0.002),
     ("ternary", 0.01, 0.012, 0.002), ("ternary_symmetric", 0.01, -0.013, 0.003)],
)  # fmt: skip
def test_the_nearest_place_where_a_mask_changes_counts(levels, threshold, init, gap):
    method = Piggyback(levels=levels, threshold=threshold, init=init)
    assert plan(method, 100, lr=gap / 99) == []
    assert len(plan(method, 100, lr=gap / 101)) == 1


@pytest.mark.parametrize(("rate", "learned"), [(2e-4, False), (6e-4, True)])
def test_the_warning_is_right(rate, learned):
    """Ten steps of 2e-4 do not bridge 5e-3 and the task ends as it started; of 6e-4 they do."""
    net, method = tiny.piggyback(), Piggyback(lr=rate)
    assert bool(plan(method, 10, lr=0.1)) is not learned
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", PlanWarning)
        tiny.train_task(net, method, 0, tiny.OPTIMIZERS["adam"], steps=10)
    assert (max(net.off(0).values()) > 0) is learned
    assert len(found) == (0 if learned else 1)


def test_a_task_that_ends_as_it_started_is_told_of_whatever_the_optimizer():
    net = tiny.piggyback()
    with pytest.warns(PlanWarning, match="task 1: not one bit of the mask differs from the start"):
        tiny.train_task(net, Piggyback(lr=1e-6), 1, tiny.OPTIMIZERS["sgd"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", PlanWarning)
        tiny.train_task(net, Piggyback(lr=1.0), 2, tiny.OPTIMIZERS["sgd"])
    assert net.differing(1, 2) > 0


def test_an_optimizer_that_forgets_or_decays_scores_is_told_of():
    net, method = tiny.piggyback(), Piggyback()
    state = method.begin_task(net, 0)
    scores, rest = (group["params"] for group in method.parameter_groups(net, 0))
    with pytest.raises(ValueError, match="the scores of 1 of 2 layers, wanted all"):
        method.check_plan(net, state, torch.optim.SGD([*scores[:1], *rest], lr=0.1), 10)
    inherits = torch.optim.AdamW([*scores, *rest], lr=0.1, weight_decay=0.1)
    with pytest.warns(PlanWarning, match="weight decay on scores"):
        method.check_plan(net, state, inherits, 10)


# --- the rest


def test_it_adds_nothing_to_the_loss_and_guards_nothing():
    net, method = tiny.piggyback(), Piggyback()
    state = method.begin_task(net, 0)
    assert method.loss_term(net, state) == 0.0
    assert not isinstance(method.loss_term(net, state), torch.Tensor)
    optimizer = torch.optim.SGD(method.parameter_groups(net, 0), lr=0.1)
    handle = method.protect(optimizer, net, state)
    assert isinstance(handle, FusedStep)
    handle.remove()
    other = torch.optim.RMSprop(method.parameter_groups(net, 0))
    assert method.protect(other, net, state) is None


def test_measure_and_outlook_are_shares_of_weights():
    net, method = tiny.piggyback(), Piggyback()
    method.begin_task(net, 0)
    first, second = net.scores()
    with torch.no_grad():
        first.flatten()[: first.numel() // 4] = 0.0
    total = first.numel() + second.numel()
    assert method.outlook(net, 0) == f"off {25 * first.numel() / total:.1f} %"
    net.finish_task(0)
    assert method.measure(net, 0) == {"off": {"1": 0.25, "4": 0.0}}


def test_the_state_goes_through_a_checkpoint():
    net, method = tiny.piggyback(), Piggyback(spread="uniform")
    state = method.begin_task(net, 1, seed=7)
    again = method.begin_task(net, 1, seed=7)
    again.load_state_dict(state.state_dict())
    assert all(torch.equal(w, again.start[name]) for name, w in state.start.items())
    net.forget_task(1)
    with pytest.raises(ValueError, match="found task 1, wanted 2"):
        method.begin_task(net, 2).load_state_dict(state.state_dict())


def test_bfloat16_scores_are_rounded_at_random_by_whatever_steps_them():
    net = tiny.piggyback()
    method = Piggyback(score_dtype="bfloat16")
    state = method.begin_task(net, 0)
    assert {p.dtype for p in net.scores()} == {torch.bfloat16}
    optimizer = torch.optim.Adam(method.parameter_groups(net, 0), lr=1e-6)
    method.protect(optimizer, net, state)
    before = [p.detach().clone() for p in net.scores()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p in net.scores():
            p.grad = torch.ones_like(p)
        optimizer.step()
    moved = sum(int((p != b).sum()) for p, b in zip(net.scores(), before, strict=True))
    count = sum(p.numel() for p in net.scores())
    # Each goes to its neighbour, 6e-5 away, with a probability of 1e-6 / 6e-5.
    assert 0 < moved < count / 10


def test_runs_of_other_seeds_round_otherwise():
    def after_a_step(seed):
        net, method = tiny.piggyback(), Piggyback(score_dtype="bfloat16")
        state = method.begin_task(net, 1, seed=seed)
        optimizer = torch.optim.SGD(method.parameter_groups(net, 1), lr=3e-5)
        method.protect(optimizer, net, state)
        for p in net.scores():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return torch.cat([p.detach().flatten() for p in net.scores()])

    first = after_a_step(seed=0)
    assert torch.equal(first, after_a_step(seed=0))
    assert not torch.equal(first, after_a_step(seed=1))
