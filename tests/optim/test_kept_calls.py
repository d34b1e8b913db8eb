"""A step's calls are kept: whatever changes what they follow from, the next step is torch's."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from maskcl import backends
from maskcl.optim import fuse
from maskcl.optim.fusable import not_fused_reasons

MAKE = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "plain SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    found = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    found.register_parameter("factor", nn.Parameter(torch.tensor(1.5)))  # 0-d
    return found


def step(net, optimizer, seed, skip=()):
    torch.manual_seed(seed)
    optimizer.zero_grad()
    (net.factor * net(torch.randn(4, 5))).square().mean().backward()
    for name, parameter in net.named_parameters():
        if name in skip:
            parameter.grad = None
    optimizer.step()


def forget_all(net, optimizer):
    optimizer.state.clear()


def forget_one(net, optimizer):
    del optimizer.state[net[0].weight]


def other_moments(net, optimizer):
    for name, value in optimizer.state[net[1].weight].items():
        if value is not None and value.dim():
            optimizer.state[net[1].weight][name] = torch.full_like(value, 0.25)


def other_state(net, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def other_rate(net, optimizer):
    optimizer.param_groups[0]["lr"] *= 0.5


def other_decay(net, optimizer):
    optimizer.param_groups[0]["weight_decay"] = 0.3


def other_momentum(net, optimizer):
    group = optimizer.param_groups[0]
    if "betas" in group:
        group["betas"] = (0.5, 0.9)
    else:
        group["momentum"] = 0.5


def momentum_on_or_off(net, optimizer):
    group = optimizer.param_groups[0]
    if "betas" in group:
        group["betas"] = (0.0, 0.9)
    else:
        group["momentum"] = 0.0 if group["momentum"] else 0.9


def rate_of_a_tensor(net, optimizer):
    optimizer.param_groups[0]["lr"] = torch.tensor(0.02)


def betas_as_a_list(net, optimizer):
    group = optimizer.param_groups[0]
    if "betas" in group:
        group["betas"] = [0.5, 0.9]


def exchange_moments(net, optimizer):
    state = optimizer.state[net[0].weight]
    if "exp_avg" in state:
        first, second = state["exp_avg"].abs(), state["exp_avg_sq"]
        optimizer.state[net[0].weight] = {
            "step": state["step"],
            "exp_avg_sq": first,
            "exp_avg": second,
        }


def exchange_options(net, optimizer):
    """Other names for the same values in the same order."""
    group = optimizer.param_groups[0]
    names = {"lr": "weight_decay", "weight_decay": "lr"}
    entries = [(names.get(name, name), value) for name, value in group.items()]
    group.clear()
    group.update(entries)


def climb(net, optimizer):
    optimizer.param_groups[0]["maximize"] = True


def another_group(net, optimizer):
    optimizer.add_param_group({"params": [net.extra], "lr": 0.2})


def another_groups_parameter(net, optimizer):
    optimizer.add_param_group({"params": [net.extra], "lr": 0.0})
    first, second = (group["params"] for group in optimizer.param_groups)
    second.insert(0, first.pop())


def fewer_parameters(net, optimizer):
    optimizer.param_groups[0]["params"].pop()


def other_order(net, optimizer):
    optimizer.param_groups[0]["params"].reverse()


def other_memory(net, optimizer):
    for parameter in net.parameters():
        parameter.data = parameter.data.clone()


CHANGES: list[Callable[[nn.Module, torch.optim.Optimizer], None]] = [
    forget_all,
    forget_one,
    other_moments,
    other_state,
    other_rate,
    other_decay,
    other_momentum,
    momentum_on_or_off,
    betas_as_a_list,
    exchange_moments,
    exchange_options,
    rate_of_a_tensor,
    climb,
    another_group,
    another_groups_parameter,
    fewer_parameters,
    other_order,
    other_memory,
]


@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", MAKE)
def test_the_step_after_a_change_is_that_of_torch(kind, change, after):
    if kind == "plain SGD" and change in (forget_one, other_moments):
        pytest.skip("it has no state")
    nets, optimizers = [model(), model()], []
    for net in nets:
        net.extra = nn.Parameter(torch.ones(3))
        held = [p for name, p in net.named_parameters() if name != "extra"]
        optimizers.append(MAKE[kind](held))
    assert fuse(optimizers[0]) is not None
    for seed in range(1, 7):
        for net, optimizer in zip(nets, optimizers, strict=True):
            step(net, optimizer, seed)
            if seed == after:
                change(net, optimizer)
    assert len(optimizers[0].state) == len(optimizers[1].state)
    found, wanted = (dict(net.named_parameters()) for net in nets)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-7, msg=name)


def test_two_groups_exchange_a_parameter_in_the_same_order():
    nets, optimizers = [model(), model()], []
    for net in nets:
        groups = [
            {"params": list(net[i].parameters()), "lr": lr} for i, lr in enumerate((0.1, 0.0))
        ]
        optimizers.append(torch.optim.Adam(groups, fused=True))
    assert fuse(optimizers[0]) is not None
    for seed in range(4):
        for net, optimizer in zip(nets, optimizers, strict=True):
            step(net, optimizer, seed)
            if seed == 1:  # the order of all parameters stays what it was
                first, second = (group["params"] for group in optimizer.param_groups)
                second.insert(0, first.pop())
    for found, wanted in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", MAKE)
def test_parameters_without_gradients_wait(kind):
    nets = [model(), model()]
    optimizers = [MAKE[kind](net.parameters()) for net in nets]
    assert fuse(optimizers[0]) is not None
    skips = [(), ("0.weight",), ("0.weight",), (), ("1.bias", "factor"), ()]
    for seed, skip in enumerate(skips):
        for net, optimizer in zip(nets, optimizers, strict=True):
            step(net, optimizer, seed, skip)
    for found, wanted in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)
    steps = [int(s["step"]) for s in optimizers[0].state.values() if "step" in s]
    assert steps == [int(s["step"]) for s in optimizers[1].state.values() if "step" in s]


@pytest.mark.parametrize("kind", MAKE)
def test_a_rate_for_each_step(kind):
    nets = [model(), model()]
    optimizers = [MAKE[kind](net.parameters()) for net in nets]
    assert fuse(optimizers[0]) is not None
    schedulers = [torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, 5) for o in optimizers]
    for seed in range(6):
        for net, optimizer, scheduler in zip(nets, optimizers, schedulers, strict=True):
            step(net, optimizer, seed)
            scheduler.step()
    for found, wanted in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def two_groups(net, kind):
    first = [net[0].weight, net[0].bias]
    second = [net[1].weight, net[1].bias, net.factor]
    return MAKE[kind]([{"params": first}, {"params": second}])


def steps(nets, optimizers, count, before):
    """Steps of the fused and of torch's optimizer; ``before`` changes both before each."""
    for seed in range(count):
        for net, optimizer in zip(nets, optimizers, strict=True):
            before(seed, optimizer)
            step(net, optimizer, seed)
    for found, wanted in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", MAKE)
def test_groups_part_and_meet_again(kind):
    nets = [model(), model()]
    optimizers = [two_groups(net, kind) for net in nets]
    assert fuse(optimizers[0]) is not None

    def before(seed, optimizer):
        group = optimizer.param_groups[1]
        group["maximize"] = seed in (2, 3)
        group["lr"], group["weight_decay"] = 0.01 * (seed + 1), 0.1 * seed
        if "betas" in group:
            group["betas"] = (0.5, 0.8) if seed in (3, 4) else (0.9, 0.999)

    steps(nets, optimizers, 8, before)


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW"])
def test_a_rate_and_a_momentum_for_each_step(kind):
    nets = [model(), model()]
    optimizers = [two_groups(net, kind) for net in nets]
    assert fuse(optimizers[0]) is not None
    cycles = [torch.optim.lr_scheduler.OneCycleLR(o, 0.05, total_steps=9) for o in optimizers]
    of = dict(zip(map(id, optimizers), cycles, strict=True))
    steps(nets, optimizers, 8, lambda seed, optimizer: seed and of[id(optimizer)].step())


def test_another_tensor_of_the_same_value_is_the_rate_from_then_on():
    nets = [model(), model()]
    optimizers = [two_groups(net, "AdamW") for net in nets]
    assert fuse(optimizers[0]) is not None

    def before(seed, optimizer):
        if seed in (1, 3):  # a fresh one each time
            for group in optimizer.param_groups:
                group["lr"] = torch.tensor(0.01)
        if seed in (2, 4):
            optimizer.param_groups[0]["lr"].fill_(0.03)

    steps(nets, optimizers, 6, before)


def test_a_schedule_makes_no_call_anew(monkeypatch):
    net = model()
    optimizer = two_groups(net, "AdamW")
    fused = fuse(optimizer)
    assert fused is not None
    for seed in range(2):
        step(net, optimizer, seed)
    monkeypatch.setattr(fused._elements, "sides", None)  # what a new call asks first
    for seed in range(2, 6):
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
            group["betas"] = (0.9, 0.99 + seed / 1000)
        step(net, optimizer, seed)


def stepped():
    """A network that SGD has stepped, with copies of its parameters."""
    net = model()
    optimizer = two_groups(net, "SGD")
    assert fuse(optimizer) is not None
    for seed in range(2):
        step(net, optimizer, seed)
    return net, optimizer, [p.detach().clone() for p in net.parameters()]


def test_options_that_raise_do_so_at_every_step_until_they_are_mended():
    net, optimizer, known = stepped()
    optimizer.param_groups[1]["lr"] = "fast"
    for seed in range(2):
        with pytest.raises(TypeError, match="lr is a str"):
            step(net, optimizer, seed)
    assert all(map(torch.equal, known, net.parameters()))
    optimizer.param_groups[1]["lr"] = 0.1
    step(net, optimizer, 3)
    assert not any(map(torch.equal, known, net.parameters()))


@pytest.mark.parametrize("wrong", [("lr", "fast"), ("weight_decay", None)], ids=lambda w: w[0])
def test_options_that_raised_and_are_put_back_are_those_of_the_next_step(wrong):
    nets = [model(), model()]
    optimizers = [two_groups(net, "SGD") for net in nets]
    for optimizer in optimizers:
        optimizer.param_groups[1]["maximize"] = True  # so that there are two calls
    assert fuse(optimizers[0]) is not None
    name, value = wrong

    def before(seed, optimizer):
        if seed != 3 or optimizer is not optimizers[0]:
            return
        kept = [dict(group) for group in optimizer.param_groups]
        optimizer.param_groups[0]["lr"] = 5.0
        optimizer.param_groups[1][name] = value
        with pytest.raises(TypeError):
            step(nets[0], optimizer, seed)
        for group, options in zip(optimizer.param_groups, kept, strict=True):
            group.update(options)

    steps(nets, optimizers, 6, before)


def test_a_list_of_betas_may_change_in_place():
    nets = [model(), model()]
    optimizers = [two_groups(net, "AdamW") for net in nets]
    assert fuse(optimizers[0]) is not None

    def before(seed, optimizer):
        group = optimizer.param_groups[0]
        if seed == 2:
            group["betas"] = [0.5, 0.9]
        elif seed > 2:
            group["betas"][0] = 0.1 * seed

    steps(nets, optimizers, 3, before)
    for net, optimizer in zip(nets, optimizers, strict=True):
        step(net, optimizer, 3, skip=("1.bias",))
    steps(nets, optimizers, 7, before)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("weight_decay", torch.tensor(0.1), "tensor, wanted a number"),
        ("momentum", torch.tensor(0.1), "tensor, wanted a number"),
        ("dampening", torch.tensor(0.1), "tensor, wanted a number"),
        ("weight_decay", None, "NoneType, wanted a number"),
        ("lr", "fast", "str, wanted a number or a tensor"),
        # It may change in place, unseen.
        ("lr", np.array(0.1), "ndarray, wanted a number or a tensor"),
    ],
)
def test_an_option_that_becomes_no_number_is_refused(name, value, what):
    net, optimizer, known = stepped()
    optimizer.param_groups[1][name] = value
    for seed in range(2):
        with pytest.raises(TypeError, match=f"{name} is a {what}$"):
            step(net, optimizer, seed)
    assert all(map(torch.equal, known, net.parameters()))


@pytest.mark.parametrize("kind", [np.float32, np.float64, Fraction, int], ids=lambda k: k.__name__)
def test_numbers_of_other_kinds_are_numbers(kind):
    nets = [model(), model()]
    optimizers = [two_groups(net, "SGD") for net in nets]
    assert fuse(optimizers[0]) is not None
    optimizers[0].param_groups[0]["lr"] = kind(1)
    optimizers[1].param_groups[0]["lr"] = 1.0
    steps(nets, optimizers, 3, lambda seed, optimizer: None)


def test_an_option_that_is_no_number_leaves_an_optimizer_its_own_step():
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    optimizer.param_groups[0]["lr"] = np.array(0.1)
    assert not_fused_reasons(optimizer) == ["lr is a ndarray, wanted a number or a tensor"]


def test_a_parameter_that_becomes_a_scalar_and_a_vector_again():
    sizes = [(1,), (), (1,), (), (2,)]
    nets = [nn.ParameterList([nn.Parameter(torch.ones(1))]) for _ in range(2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    assert fuse(optimizers[0]) is not None
    for size in sizes:
        for net, optimizer in zip(nets, optimizers, strict=True):
            (parameter,) = net
            parameter.data = parameter.data.sum().expand(size).clone()
            parameter.grad = torch.full(size, 0.5)
            optimizer.step()
    assert nets[0][0].shape == (2,)
    torch.testing.assert_close(nets[0][0], nets[1][0], rtol=1e-6, atol=1e-7)


def test_a_first_step_that_an_option_refuses_leaves_no_state():
    nets = [model(), model()]
    optimizers = [
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.5) for net in nets
    ]
    assert fuse(optimizers[0]) is not None
    optimizers[0].param_groups[0]["weight_decay"] = torch.tensor(0.1)
    with pytest.raises(TypeError, match="weight_decay is a tensor"):
        step(nets[0], optimizers[0], 0)
    assert not any(optimizers[0].state.values())
    optimizers[0].param_groups[0]["weight_decay"] = 0
    steps(nets, optimizers, 3, lambda seed, optimizer: None)


@pytest.mark.parametrize("tries", [1, 3])
def test_a_first_step_whose_op_fails_has_no_momentum(monkeypatch, tries):
    nets = [model(), model()]
    optimizers = [
        torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.5) for net in nets
    ]
    assert fuse(optimizers[0]) is not None

    def fails(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(backends, "select", lambda *_: fails)
        for seed in range(tries):
            with pytest.raises(RuntimeError, match="out of memory"):
                step(nets[0], optimizers[0], seed)
    assert not any(optimizers[0].state.values())
    steps(nets, optimizers, 3, lambda seed, optimizer: None)
