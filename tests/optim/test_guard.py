"""The guard puts protected elements and their state back; everything else moves as without it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskcl.nn import Protection
from maskcl.optim import Guard, guard, protect
from maskcl.reference.grad_clamp import users

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw-loop": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=False),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, weight_decay=0.1, momentum=0.5),
}
OUT = torch.tensor([[1], [2], [3], [0]])
IN = torch.tensor([[1], [2], [0]])
EVERY = torch.tensor([[-1]])


def protection(weight: nn.Parameter, bias: nn.Parameter) -> Protection:
    return Protection(
        ["weight", "bias"], [weight, bias], [OUT, OUT], [IN, EVERY], [1, 1], empty=False
    )


def protected(exact: bool) -> tuple[torch.Tensor, torch.Tensor]:
    if exact:
        return (OUT & IN.T) != 0, (OUT != 0).flatten()
    return (OUT != 0) & (IN.T != 0), (OUT != 0).flatten()


def parameters() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4))]


def step(optimizer, params, seed: int, masks=None) -> None:
    """One step on random gradients, zero where ``masks`` say."""
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params):
        p.grad = torch.randn(p.shape, generator=generator)
        if masks is not None:
            p.grad[masks[i]] = 0
    optimizer.step()


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "min"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_protected_elements_stay_and_the_rest_moves_as_without_a_guard(name, exact):
    guarded, free = parameters(), parameters()
    start = [p.detach().clone() for p in guarded]
    masks = protected(exact)
    optimizer, other = OPTIMIZERS[name](guarded), OPTIMIZERS[name](free)
    guard(optimizer, protection(*guarded), exact=exact)
    for seed in range(50):
        step(optimizer, guarded, seed, masks)
        step(other, free, seed, masks)
    for p, q, before, mask in zip(guarded, free, start, masks):
        assert torch.equal(p[mask], before[mask])
        assert torch.equal(p[~mask], q[~mask])
        assert not (p[~mask] == before[~mask]).any()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_state_made_after_the_guard_is_zero_there(name):
    params = parameters()
    masks = protected(True)
    optimizer = OPTIMIZERS[name](params)
    guard(optimizer, protection(*params))
    step(optimizer, params, 0)  # gradients that nobody clamped
    checked = 0
    for p, mask in zip(params, masks):
        for value in optimizer.state[p].values():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                assert (value[mask] == 0).all()
                checked += int((value[~mask] != 0).any())
    assert checked >= 2


def test_state_that_existed_is_put_back():
    params = parameters()
    masks = protected(True)
    optimizer = OPTIMIZERS["adam"](params)
    step(optimizer, params, 0)
    before = [optimizer.state[p]["exp_avg"].clone() for p in params]
    guard(optimizer, protection(*params))
    step(optimizer, params, 1, masks)
    for p, b, mask in zip(params, before, masks):
        now = optimizer.state[p]["exp_avg"]
        assert torch.equal(now[mask], b[mask])
        assert (b[mask] != 0).all()
        assert not (now[~mask] == b[~mask]).any()


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_resumed_guard_copies_no_state(name):
    params = parameters()
    masks = protected(True)
    optimizer = OPTIMIZERS[name](params)
    first = guard(optimizer, protection(*params))
    step(optimizer, params, 0, masks)
    resumed = OPTIMIZERS[name](params)
    resumed.load_state_dict(optimizer.state_dict())
    first.remove()
    before = [p.detach().clone() for p in params]
    second = guard(resumed, protection(*params))
    assert second._saved is not None and second._saved_state == {}
    step(resumed, params, 1)  # gradients that nobody clamped
    for p, b, mask in zip(params, before, masks):
        assert torch.equal(p[mask], b[mask]) and not (p[~mask] == b[~mask]).any()
        for value in resumed.state[p].values():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                assert (value[mask] == 0).all()


def test_plain_sgd_costs_no_copy_until_it_gains_momentum():
    params = parameters()
    start = [p.detach().clone() for p in params]
    masks = protected(True)
    optimizer = torch.optim.SGD(params, lr=0.1)
    handle = guard(optimizer, protection(*params))
    step(optimizer, params, 0, masks)
    assert handle._saved is None
    optimizer.param_groups[0]["weight_decay"] = 0.1
    step(optimizer, params, 1, masks)
    assert handle._saved is not None
    for p, before, mask in zip(params, start, masks):
        assert torch.equal(p[mask], before[mask])


def test_a_subclass_of_sgd_is_guarded():
    class Odd(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(1)

    params = parameters()
    start = params[0].detach().clone()
    optimizer = Odd(params, lr=0.1)
    guard(optimizer, protection(*params))
    step(optimizer, params, 0, protected(True))
    mask = protected(True)[0]
    assert torch.equal(params[0][mask], start[mask])
    assert not (params[0][~mask] == start[~mask]).any()


def test_remove_lets_go():
    params = parameters()
    start = params[0].detach().clone()
    optimizer = OPTIMIZERS["adamw"](params)
    guard(optimizer, protection(*params)).remove()
    step(optimizer, params, 0)
    assert not (params[0] == start).any()


def test_parameters_of_other_optimizers_are_not_touched():
    params = parameters()
    optimizer = OPTIMIZERS["adamw"](params[:1])
    guard(optimizer, protection(*params))
    step(optimizer, params, 0)
    with torch.no_grad():
        params[1].fill_(7)
    step(optimizer, params, 1)
    assert (params[1] == 7).all()


# --- large parameters, of which rows and columns are copied


def of_tasks(units: int, *ranges: range) -> torch.Tensor:
    """Bit k for the units of the k-th range."""
    bits = torch.zeros(units, 1, dtype=torch.int64)
    for task, used in enumerate(ranges):
        bits[list(used)] |= 1 << task
    return bits


EVERY = torch.full((1, 1), -1)
LARGE = {  # shape, sides, groups, elements that a copy may have
    "one task": ((400, 200), of_tasks(400, range(90)), of_tasks(200, range(60)), 1, 90 * 60),
    "two tasks": (
        (400, 200),
        of_tasks(400, range(50), range(40, 90)),
        of_tasks(200, range(30), range(20, 60)),
        1,
        90 * 60,
    ),
    "apart": (
        (400, 200),
        of_tasks(400, range(50), range(200, 250)),
        of_tasks(200, range(30), range(150, 160)),
        1,
        100 * 40,
    ),
    "all columns": ((400, 200), of_tasks(400, range(7, 90)), EVERY, 1, 83 * 200),
    "all rows": ((400, 200), EVERY, of_tasks(200, range(5, 60)), 1, 400 * 55),
    "all": ((400, 200), EVERY, EVERY, 1, 400 * 200),
    "filters": ((128, 64, 3, 3), of_tasks(128, range(9)), of_tasks(64, range(8)), 1, 9 * 8 * 9),
    "grouped": ((128, 64, 3, 3), of_tasks(128, range(9)), of_tasks(128, range(8)), 2, 128 * 64 * 9),
    "a vector": ((70000,), of_tasks(70000, range(500)), EVERY, 1, 500),
}


@pytest.mark.parametrize("order", ["rows", "turned"])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("case", LARGE)
def test_of_a_large_parameter_the_block_of_what_is_protected_is_copied(case, exact, order):
    shape, out, into, groups, most = LARGE[case]
    torch.manual_seed(0)
    start = torch.randn(shape)
    start.view(-1)[::7] = -0.0
    if order == "turned":
        start = start.transpose(0, -1).contiguous().transpose(0, -1)
    parameter = torch.nn.Parameter(start.clone(memory_format=torch.preserve_format))
    known = Protection(["w"], [parameter], [out], [into], [groups], False)
    taken = users(start, out, into, groups, exact) != 0
    taken = taken.view(*taken.shape, *[1] * (len(shape) - 2)) if len(shape) > 1 else taken.flatten()
    taken = taken.expand(shape)
    optimizer = torch.optim.RMSprop([parameter], lr=0.1, momentum=0.9)
    first = guard(optimizer, known, exact)
    for seed in range(2):
        torch.manual_seed(seed)
        parameter.grad = torch.randn(shape)
        optimizer.step()
    assert first._saved is not None and first._saved[0].numel() <= most
    first.remove()
    for value in optimizer.state[parameter].values():
        if value.shape == shape:
            assert (value[taken] == 0).all() and (value[~taken] != 0).all()
            value[taken] = 2.0
    second = guard(optimizer, known, exact)
    assert {t.numel() <= most for t in second._saved_state.values()} == {True}
    assert len(second._saved_state) == 2
    parameter.grad = torch.randn(shape)
    optimizer.step()
    assert torch.equal(parameter[taken].view(torch.int32), start[taken].view(torch.int32))
    assert (parameter != start)[~taken].all()
    for value in optimizer.state[parameter].values():
        if value.shape == shape:
            assert (value[taken] == 2).all()


def test_protect_does_not_count_on_gradients_of_zero():
    """Nobody clamped them: of an SGD that keeps its own step too, all is put back."""
    params = parameters()
    start = [p.detach().clone() for p in params]
    optimizer = torch.optim.SGD(params, lr=0.1)
    optimizer.param_groups[0]["dampening"] = torch.tensor(0.0)
    assert isinstance(protect(optimizer, protection(*params)), Guard)
    step(optimizer, params, 0)
    for p, before, mask in zip(params, start, protected(True)):
        assert torch.equal(p[mask], before[mask]) and not (p[~mask] == before[~mask]).any()
