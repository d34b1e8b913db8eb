"""Forgetting and pruning on hat-cl's surface as in its own tests, and what they need saved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from maskcl.compat.hat_cl.exceptions import HATInitializationError, NoParameterToForgetWarning
from maskcl.compat.hat_cl.modules import HATLinear
from maskcl.compat.hat_cl.utils import forget_task, get_hat_reg_term, prune_hat_module
from tests.compat.hat_tiny import NETWORKS, OPTIMIZERS, TASKS, config, outputs, same, train, trained

pytestmark = pytest.mark.filterwarnings(
    "ignore::maskcl.compat.hat_cl.exceptions.LearningSuppressedWarning"
)


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
