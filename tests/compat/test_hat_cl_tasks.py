"""Remembering, locking, forgetting and pruning on hat-cl's surface, as in hat-cl's own tests.

Theirs allow a tolerance and build the optimizer anew for every task; here outputs are equal bit for
bit, the optimizer stays, and it decays.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.exceptions import (
    LearningSuppressedWarning,
    MaskerLockedError,
)
from maskcl.compat.hat_cl.modules import HATLinear
from tests.compat.hat_tiny import (
    NETWORKS,
    OPTIMIZERS,
    TASKS,
    config,
    mlp,
    outputs,
    payload,
    same,
    train,
    trained,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::maskcl.compat.hat_cl.exceptions.LearningSuppressedWarning"
)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_remembering(name, optimizer):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    net = build()
    # One optimizer for all tasks, whose moments and decay reach everything.
    step = OPTIMIZERS[optimizer](net.parameters())
    x = torch.rand(4, *shape)
    for task in range(TASKS):
        before = outputs(net, x, range(task))
        train(net, shape, task, step)
        assert same(before, outputs(net, x, range(task)))


def test_gradients_left_from_an_earlier_task_move_nothing():
    net, shape = trained("mlp", tasks=1)
    x = torch.rand(3, *shape)
    before = outputs(net, x, [0])
    net.train()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    payload(shape, 1).forward_by(net).data.square().sum().backward()
    optimizer.step()
    assert same(before, outputs(net, x, [0]))


def test_learning_is_not_suppressed():
    net, shape = trained("mlp", tasks=1)
    x = torch.rand(4, *shape)
    before = outputs(net, x, [1])
    train(net, shape, 1, torch.optim.SGD(net.parameters(), lr=0.05))
    assert not same(before, outputs(net, x, [1]))


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("name", NETWORKS)
def test_locking_future_tasks(name, optimizer):
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    net = build()
    x, later = torch.rand(4, *shape), [1, 2]
    before = outputs(net, x, later)
    step = OPTIMIZERS[optimizer](net.parameters())
    train(net, shape, 0, step, locked_task_ids=later)
    assert same(before, outputs(net, x, later))
    with pytest.raises(MaskerLockedError, match="among locked_task_ids"):
        train(net, shape, 0, step, locked_task_ids=[0, 1])


def test_zero_gradients_do_not_move_a_task_of_its_own():
    torch.manual_seed(0)
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train(net, (7,), 0, optimizer)
    x = torch.rand(4, 7)
    before = outputs(net, x, [0])
    net.train()
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        payload((7,), 1).forward_by(net).data.sum().backward()
        optimizer.step()
    assert same(before, outputs(net, x, [0]))


def test_a_step_with_a_closure_remembers():
    torch.manual_seed(0)
    net = mlp()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    x = torch.rand(4, 7)

    def close(task):
        def closure():
            optimizer.zero_grad()
            loss = payload((7,), task).forward_by(net).data.sum()
            loss.backward()
            return loss

        return closure

    for task in range(TASKS):
        before = outputs(net, x, range(task))
        net.train()
        for _ in range(2):
            optimizer.step(close(task))
        assert same(before, outputs(net, x, range(task)))


def test_each_forward_keeps_its_own_locks():
    net, shape = trained("one layer", tasks=2)
    with torch.no_grad():
        for task, signs in enumerate(([1, -1, 1, -1, 1, -1], [1, 1, -1, -1, 1, -1])):
            net.masker.attention[task].copy_(torch.tensor(signs))
    net.train()
    net.zero_grad()
    payload(shape, 1).forward_by(net).data.sum().backward()
    alone = net.weight.grad.clone()
    net.zero_grad()
    # hat-cl's second forward takes the hooks of the first away.
    first = payload(shape, 1).forward_by(net).data.sum()
    second = payload(shape, 2).forward_by(net).data.sum()
    (first + 0 * second).backward()
    own = net.masker.get_binary_mask(0)
    assert (net.weight.grad[own] == 0).all() and (alone[own] == 0).all()
    assert (net.weight.grad[~own] != 0).any()


def test_a_layer_used_twice():
    torch.manual_seed(0)
    first, shared = HATLinear(5, 5, config()), HATLinear(5, 5, config())
    net = nn.Sequential(first, nn.ReLU(), shared, nn.ReLU(), shared)
    x = torch.rand(4, 5)
    step = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for task in range(TASKS):
        before = outputs(net, x, range(task))
        train(net, (5,), task, step)
        assert same(before, outputs(net, x, range(task)))
    assert len(shared.masker.feeds.known) == 2


def test_test_masks_are_what_is_locked():
    torch.manual_seed(0)
    net, (x,) = HATLinear(3, 4, config()), torch.rand(1, 2, 3)
    with torch.no_grad():
        net.masker.attention[0].copy_(torch.tensor([-0.005, 0.005, 1.0, -1.0]))
    net.eval()
    soft = net(hat.HATPayload(x, task_id=0, mask_scale=100.0)).data
    assert torch.equal(soft, net(hat.HATPayload(x, task_id=0)).data)
    assert (soft[:, [0, 3]] == 0).all() and (soft[:, [1, 2]] != 0).all()


def test_depleted_units_are_told_once():
    torch.manual_seed(0)
    net = nn.Sequential(*(HATLinear(4, 4, config(init_strat="dense")) for _ in range(2)))
    train(net, (4,), 0, torch.optim.SGD(net.parameters(), lr=0.01), steps=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(net, (4,), 1, torch.optim.SGD(net.parameters(), lr=0.01), steps=3)
    assert sum(w.category is LearningSuppressedWarning for w in seen) == 2
