"""A protected step that is put on top of another goes on with what that one does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import maskcl
from maskcl.nn import Protection
from maskcl.optim import Guard, fuse, protect
from maskcl.optim.fused_step import FusedStep, active_step

OUT = torch.tensor([[1], [1], [0], [0]])
EVERY = torch.full((1, 1), -1)
TAKEN = slice(0, 2)  # rows


def weight(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    torch.manual_seed(seed)
    return nn.Parameter(torch.randn(4, 3).to(dtype))


def protection(*weights: nn.Parameter) -> Protection:
    count = len(weights)
    names = [f"w{n}" for n in range(count)]
    return Protection(names, [*weights], [OUT] * count, [EVERY] * count, [1] * count, False)


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def assert_kept(parameter: nn.Parameter, before: torch.Tensor) -> None:
    assert torch.equal(parameter[TAKEN], before[TAKEN])
    assert not (parameter[2:] == before[2:]).any()


@pytest.mark.parametrize("make", [maskcl.optim.SGD, maskcl.optim.Adam, maskcl.optim.AdamW])
def test_fuse_leaves_protected_what_is(make):
    parameter = weight()
    before = parameter.detach().clone()
    optimizer = make([parameter], lr=0.1, protect=protection(parameter))
    fuse(optimizer)
    step(optimizer)
    assert_kept(parameter, before)


def test_methods_without_protection_leave_it_too():
    net = maskcl.nn.to_importance(
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), 2, classes=[2, 2]
    )
    parameter = net.get_parameter("model.0.weight")
    before = parameter.detach().clone()
    method = maskcl.MAS()
    state = method.begin_task(net, 0)
    optimizer = maskcl.optim.SGD(net.parameters(), lr=0.1, protect=protection(parameter))
    method.protect(optimizer, net, state)
    step(optimizer)
    assert_kept(parameter, before)


@pytest.mark.parametrize("order", [0, 1])
def test_two_networks_of_one_optimizer_are_both_protected(order):
    weights = [weight(0), weight(1)]
    before = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.1)
    first, second = weights[order], weights[1 - order]
    handles = [protect(optimizer, protection(first)), protect(optimizer, protection(second))]
    for _ in range(2):
        step(optimizer)
    for parameter, old in zip(weights, before, strict=True):
        assert_kept(parameter, old)
    handles[1].remove()
    moved = second.detach().clone()
    step(optimizer)
    assert torch.equal(first[TAKEN], before[order][TAKEN])
    assert not (second == moved).any()


def test_the_newer_protection_of_a_parameter_counts():
    parameter = weight()
    before = parameter.detach().clone()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    protect(optimizer, protection(parameter))
    none = Protection(["w"], [parameter], [OUT * 0], [EVERY], [1], False)
    protect(optimizer, none)  # its task was forgotten
    step(optimizer)
    assert not (parameter == before).any()


def test_two_ways_of_protection_in_one_optimizer_are_refused():
    weights = [weight(0), weight(1)]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    protect(optimizer, protection(weights[0]))
    with pytest.raises(ValueError, match="'exact' here and 'min'"):
        protect(optimizer, protection(weights[1]), protection="min")


@pytest.mark.parametrize("again", [fuse, lambda o: protect(o, protection(weight(5)))])
def test_norm_and_dtype_of_the_state_stay(again):
    parameter = weight(dtype=torch.bfloat16)
    options = {"max_norm": 1e-3, "state_dtype": torch.float32}
    optimizer = maskcl.optim.SGD([parameter], lr=1.0, momentum=0.9, **options)
    before = parameter.detach().clone()
    again(optimizer)
    step(optimizer)
    momentum = optimizer.state[parameter]["momentum_buffer"]
    assert momentum.dtype is torch.float32
    assert float(momentum.norm()) == pytest.approx(1e-3, rel=1e-2)
    assert float((parameter - before).abs().max()) < 1e-2


@pytest.mark.parametrize(("clip", "max_norm"), [(0.5, 1e-3), (1e-3, 0.5), (None, 1e-3)])
def test_hats_clip_and_the_optimizers_bound_both_hold(clip, max_norm):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    net = maskcl.nn.to_hat(model, 2, torch.zeros(2, 3), classes=[2, 2])
    method = maskcl.HAT(clip=clip)
    state = method.begin_task(net, 0)
    before = [p.detach().clone() for p in net.task_parameters(0)]
    optimizer = maskcl.optim.SGD(net.task_parameters(0), lr=1.0, max_norm=max_norm)
    method.protect(optimizer, net, state)
    step(optimizer)
    moved = [p.detach() - b for p, b in zip(net.task_parameters(0), before, strict=True)]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-2)


def test_the_step_of_now_is_found_below_those_that_were_removed():
    optimizer = torch.optim.SGD([weight()], lr=0.1)
    assert active_step(optimizer) is None
    first, second, third = (fuse(optimizer) for _ in range(3))
    assert active_step(optimizer) is third
    second.remove()
    third.remove()
    assert active_step(optimizer) is first
    first.remove()
    assert active_step(optimizer) is None


def test_a_step_of_a_subclass_is_not_thrown_away():
    class Own(maskcl.optim.AdamW):
        def step(self, closure=None):
            return super().step(closure)

    class Plain(maskcl.optim.AdamW):
        pass

    with pytest.raises(TypeError, match="Own: it has a step of its own"):
        Own([weight()])
    for _ in range(2):  # torch wraps the step of each class when it makes its first optimizer
        assert isinstance(active_step(Plain([weight()])), FusedStep)


def test_a_step_that_other_code_put_there_is_taken_and_guarded():
    parameter = weight()
    before = parameter.detach().clone()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    steps, plain = [], optimizer.step

    def counted(closure=None):
        steps.append(1)
        return plain(closure)

    optimizer.step = counted
    assert isinstance(protect(optimizer, protection(parameter)), Guard)
    step(optimizer)
    assert steps == [1]
    assert_kept(parameter, before)


def test_a_schedulers_count_of_steps_is_no_step_of_other_code():
    parameter = weight()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert isinstance(protect(optimizer, protection(parameter)), FusedStep)
