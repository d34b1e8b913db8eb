"""Optimizers that round bfloat16 at random: small steps count, and a resumed run draws on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from maskcl.optim import SGD, Adam, AdamW, fuse

KINDS = {
    "SGD": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9}),
    "Adam": (Adam, {}),
    "AdamW": (AdamW, {"weight_decay": 0.01}),
    "float32 moments": (Adam, {"state_dtype": torch.float32}),
}


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    shapes = (6, 300), (70,), (4, 3, 3, 3), ()
    return [nn.Parameter(torch.randn(s).to(torch.bfloat16)) for s in shapes]


def run(optimizer, params, steps) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(kind):
    make, options = KINDS[kind]
    options = {"lr": 1e-3, "rounding": "stochastic", "seed": 4, **options}
    whole = parameters()
    run(make(whole, **options), whole, range(6))

    first = parameters()
    optimizer = make(first, **options)
    run(optimizer, first, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    resumed = [nn.Parameter(p.detach().clone()) for p in first]
    optimizer = make(resumed, **options)
    optimizer.load_state_dict(state)
    run(optimizer, resumed, range(3, 6))
    assert same(resumed, whole)

    forgetful = [nn.Parameter(p.detach().clone()) for p in first]
    del state["param_groups"][0]["draw"]  # draws would begin anew
    optimizer = make(forgetful, **options)
    optimizer.load_state_dict(state)
    run(optimizer, forgetful, range(3, 6))
    assert not same(forgetful, whole)


def test_the_seed_draws_and_nearest_is_torchs():
    ends = {}
    for name, options in {
        "nearest": {},
        "one": {"rounding": "stochastic"},
        "again": {"rounding": "stochastic"},
        "two": {"rounding": "stochastic", "seed": 1},
    }.items():
        ends[name] = parameters()
        run(Adam(ends[name], lr=1e-3, **options), ends[name], range(3))
    assert same(ends["one"], ends["again"])
    assert not same(ends["one"], ends["two"])
    torchs = parameters()
    run(torch.optim.Adam(torchs, lr=1e-3, fused=True), torchs, range(3))
    assert same(ends["nearest"], torchs)


def test_parameters_draw_apart_and_alike_in_any_groups():
    torch.manual_seed(0)
    values, grads = (torch.randn(2000).to(torch.bfloat16) for _ in range(2))

    def stepped(groups):
        params = [nn.Parameter(values.clone()) for _ in range(2)]
        optimizer = SGD(groups(params), lr=1e-4, rounding="stochastic")
        for p in params:
            p.grad = grads.clone()
        optimizer.step()
        return params

    one = stepped(lambda params: params)
    assert not torch.equal(*one)
    two = stepped(lambda params: [{"params": params[:1]}, {"params": params[1:], "lr": 1e-4}])
    assert same(one, two)


def test_small_steps_add_up_whatever_the_moments_dtype():
    """Adam's steps of 1e-6 each way: where to, a mean of 4000 scores shows."""
    for state_dtype in (None, torch.float32):
        scores = nn.Parameter(torch.full((4000,), 1e-2, dtype=torch.bfloat16))
        start = scores.double().mean().item()
        optimizer = Adam([scores], lr=1e-6, rounding="stochastic", state_dtype=state_dtype)
        for _ in range(200):
            scores.grad = torch.ones_like(scores)
            optimizer.step()
        assert scores.double().mean().item() - start == pytest.approx(-2e-4, rel=0.05)


def test_bfloat16_moments_decay_as_they_should():
    """To nearest a second moment of rate .999 never decays: 1e-3 of it is less than half an ulp."""
    found = {}
    for rounding in ("nearest", "stochastic"):
        p = nn.Parameter(torch.zeros(2000, dtype=torch.bfloat16))
        optimizer = Adam([p], lr=1e-3, rounding=rounding)
        for step in range(400):
            p.grad = torch.full_like(p, 1.0 if step == 0 else 0.0)
            optimizer.step()
        found[rounding] = optimizer.state[p]["exp_avg_sq"].double().mean().item() / 1e-3
    assert found["nearest"] > 0.95
    assert found["stochastic"] == pytest.approx(0.999**399, rel=0.05)


def test_a_removed_step_gives_the_optimizer_its_own_back():
    p = parameters()
    optimizer = torch.optim.SGD(p, lr=1e-3)
    fuse(optimizer, rounding="stochastic", seed=3).remove()
    run(optimizer, p, range(1))
    assert "draw" not in optimizer.param_groups[0]


def test_a_step_in_the_place_of_another_rounds_as_that_did():
    """As a method's ``protect`` is, for the optimizer that a user has built."""
    ends = []
    for fused in (False, True):
        ends.append(parameters())
        optimizer = Adam(ends[-1], lr=1e-3, rounding="stochastic", seed=5)
        if fused:
            fuse(optimizer)
        run(optimizer, ends[-1], range(3))
    assert same(*ends)


def test_steps_removed_in_any_order_leave_no_rounding_behind():
    p = parameters()
    optimizer = torch.optim.SGD(p, lr=1e-3)
    first = fuse(optimizer, rounding="stochastic", seed=3)
    second = fuse(optimizer)
    assert optimizer.rounding_seed == 3
    first.remove()
    second.remove()
    assert optimizer.rounding_seed is None


def test_what_is_of_the_whole_optimizer_is_refused_in_a_group():
    first, second, *_ = parameters()
    message = "SGD: a group has rounding, seed, wanted among the optimizer's arguments"
    group = {"params": [second], "rounding": "stochastic", "seed": 1}
    with pytest.raises(ValueError, match=message):
        SGD([{"params": [first]}, group], lr=0.1)
    optimizer = SGD([first], lr=0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"rounding": "up"}, ValueError, "rounding is 'up', wanted nearest or stochastic"),
        ({"rounding": "stochastic", "seed": 1.5}, TypeError, "seed is a float, wanted an int"),
        ({"seed": 2**63}, ValueError, "seed is .*, wanted one of 64 bits"),
    ],
)
def test_wrong_options_are_named(options, kind, message):
    with pytest.raises(kind, match=f"SGD: {message}"):
        SGD(parameters(), lr=0.1, **options)
    with pytest.raises(kind, match=f"fuse: {message}"):
        fuse(torch.optim.SGD(parameters(), lr=0.1), **options)
