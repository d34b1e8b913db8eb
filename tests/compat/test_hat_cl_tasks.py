"""Remembering, locking, forgetting and pruning on hat-cl's surface, as in hat-cl's own tests.

Theirs allow a tolerance and build the optimizer anew for every task; here outputs are equal bit for
bit, the optimizer stays, and it decays.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.exceptions import (
    HATInitializationError,
    LearningSuppressedWarning,
    MaskerLockedError,
    NoParameterToForgetWarning,
)
from maskcl.compat.hat_cl.modules import HATLinear
from maskcl.compat.hat_cl.utils import forget_task, get_hat_reg_term, prune_hat_module
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
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::maskcl.compat.hat_cl.exceptions.LearningSuppressedWarning"
)


def trained(name, seed=0, tasks=TASKS):
    torch.manual_seed(seed)
    build, shape = NETWORKS[name]
    net = build()
    for task in range(tasks):
        train(net, shape, task, torch.optim.SGD(net.parameters(), lr=0.05))
    return net, shape


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


@pytest.mark.parametrize("name", NETWORKS)
def test_forgetting_one_task_keeps_the_others(name):
    net, shape = trained(name)
    x = torch.rand(4, *shape)
    before = outputs(net, x, range(TASKS))
    state = copy.deepcopy(net.state_dict())
    dry = forget_task(net, 1, dry_run=True)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    result = forget_task(net, 1)
    assert dry.keys() == result.keys() and all(torch.equal(dry[k], result[k]) for k in dry)
    after = outputs(net, x, range(TASKS))
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    found, count = result.get_num_forgotten("weight")
    assert 0 < found < count
    with pytest.raises(IndexError, match="has not trained"):
        forget_task(net, 1)


def test_every_weight_of_the_task_alone_is_forgotten():
    net, _ = trained("mlp")
    first, second = net[0].masker, net[4].masker
    masks = [[m.get_binary_mask(k) for k in range(TASKS)] for m in (first, second)]
    used = [o[:, None] & i[None] for i, o in zip(*masks, strict=True)]
    before = net[4].weight.detach().clone()
    result = forget_task(net, 1, module_name="net")
    own = used[1] & ~used[0] & ~used[2]
    # hat-cl reads the mask in front after it has drawn it anew, and takes an outer product.
    assert torch.equal(result["net.4.weight"], own)
    assert torch.equal(net[4].weight != before, own)
    # As the layer starts, and not N(0, 1).
    assert net[4].weight.abs().max() < 1


def test_nothing_to_forget_warns():
    torch.manual_seed(0)
    net = HATLinear(3, 4, config(init_strat="dense"))
    for task in range(2):
        train(net, (3,), task, torch.optim.SGD(net.parameters(), lr=0.01), steps=1)
    with pytest.warns(NoParameterToForgetWarning):
        forget_task(net, 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_keeps_the_task(name):
    net, shape = trained(name)
    x = torch.rand(4, *shape)
    before = outputs(net, x, range(TASKS))
    for task in range(TASKS):
        pruned, _ = prune_hat_module(net, task)
        assert torch.equal(outputs(pruned, x, [task])[task], before[task])
    assert same(before, outputs(net, x, range(TASKS)))
    with pytest.raises(ValueError, match="task_id is 7"):
        prune_hat_module(net, 7)


def test_state_dict_is_enough_to_forget_and_to_protect():
    net, shape = trained("conv, flatten, linear")
    x = torch.rand(4, *shape)
    before = outputs(net, x, range(TASKS))
    other = NETWORKS["conv, flatten, linear"][0]()
    other.load_state_dict(net.state_dict())
    assert same(before, outputs(other, x, range(TASKS)))
    twin = NETWORKS["conv, flatten, linear"][0]()
    twin.load_state_dict(net.state_dict())
    wanted, found = forget_task(net, 2, module_name="n"), forget_task(twin, 2, module_name="n")
    assert all(torch.equal(wanted[k], found[k]) for k in wanted)
    assert twin.linear.masker.depth == net.linear.masker.depth == 2
    train(twin, shape, 2, OPTIMIZERS["AdamW"](twin.parameters()))
    after = outputs(twin, x, [0, 1])
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])


def test_without_a_forward_the_topology_is_not_known():
    net = NETWORKS["mlp"][0]()
    for masker in (net[0].masker, net[4].masker, net[6].masker):
        masker._task_trained[0] = True
    with pytest.raises(HATInitializationError, match="run a forward"):
        forget_task(net, 0)
    outputs(net, torch.rand(2, 7), [0])
    forget_task(net, 0)


def test_depleted_units_are_told_once():
    torch.manual_seed(0)
    net = nn.Sequential(*(HATLinear(4, 4, config(init_strat="dense")) for _ in range(2)))
    train(net, (4,), 0, torch.optim.SGD(net.parameters(), lr=0.01), steps=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        train(net, (4,), 1, torch.optim.SGD(net.parameters(), lr=0.01), steps=3)
    assert sum(w.category is LearningSuppressedWarning for w in seen) == 2


def test_regularization():
    torch.manual_seed(0)
    net = nn.Sequential(HATLinear(3, 6, config()), HATLinear(6, 4, config()))
    train(net, (3,), 0, torch.optim.SGD(net.parameters(), lr=0.01), steps=1)
    net.train()
    options = {"task_id": 1, "mask_scale": 2.0}
    maskers = [layer.masker for layer in net]
    masks = [torch.sigmoid(2 * m.attention[1]).detach() for m in maskers]
    free = [(m.attention[0] <= 0).float() for m in maskers]
    taken = [(m * f).sum() for m, f in zip(masks, free, strict=True)]
    plain = get_hat_reg_term(net, "uniform", forgive_quota=False, **options)
    layers = [t / f.sum() for t, f in zip(taken, free, strict=True)]
    torch.testing.assert_close(plain, sum(layers) / 2)
    rest = [
        (t - len(m) / TASKS).clamp_min(0) / f.sum()
        for t, m, f in zip(taken, masks, free, strict=True)
    ]
    torch.testing.assert_close(get_hat_reg_term(net, "uniform", **options), sum(rest) / 2)
    paper = get_hat_reg_term(net, "paper", **options)
    torch.testing.assert_close(paper, sum(taken) / sum(f.sum() for f in free))
    paper.backward()
    assert all(m.attention[1].grad.abs().sum() > 0 for m in maskers)
    with pytest.raises(ValueError, match="uniform, paper"):
        get_hat_reg_term(net, "heuristic", **options)
    assert get_hat_reg_term(nn.Linear(2, 2), "uniform", **options) == 0.0
