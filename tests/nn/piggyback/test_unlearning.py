"""Exact unlearning under Piggyback: words, head and norms of a task go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.nn import PiggybackNetwork, to_piggyback
from tests.nn.zoo import MODELS, images


def network(levels: str = "binary") -> PiggybackNetwork:
    torch.manual_seed(1)
    return to_piggyback(MODELS["conv"](), 3, classes=[3, 2, 4], levels=levels, norms="task")


def learn(net: PiggybackNetwork, task: int, seed: int, *, finish: bool = True) -> None:
    net.begin_task(task, threshold=5e-3, density=0.5 if net.levels == "topk" else None)
    optimizer = torch.optim.Adam(net.task_parameters(task), lr=0.01)
    net.train()
    torch.manual_seed(task)
    x, y = images(16, seed=seed), torch.arange(16) % 2
    for _ in range(4):
        optimizer.zero_grad()
        with net.task(task):
            F.cross_entropy(net(x), y).backward()
        optimizer.step()
    if finish:
        net.finish_task(task)


@torch.no_grad()
def outputs(net: PiggybackNetwork, task: int) -> Tensor:
    net.eval()
    with net.task(task):
        return net(images(20, seed=99))


@pytest.mark.parametrize("levels", ["binary", "ternary", "topk"])
@pytest.mark.parametrize("task", [1, 2])
def test_two_runs_that_differ_in_a_tasks_data_are_equal_after_it_is_forgotten(
    levels: str, task: int
) -> None:
    """No task builds on another here, so that it need not be the last."""
    nets = [network(levels), network(levels)]
    for net, seed in zip(nets, (5, 6), strict=True):
        for k in range(3):
            learn(net, k, seed if k == task else 10 + k)
    others = [k for k in range(3) if k != task]
    known = {k: outputs(nets[0], k) for k in others}
    one, other = (net.state_dict() for net in nets)
    assert any(not torch.equal(one[k], other[k]) for k in one)
    record = nets[0].forget_task(task, reset=True, seed=2)
    nets[1].forget_task(task, reset=True, seed=2)
    one, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert all(torch.equal(outputs(nets[0], k), known[k]) for k in others)
    nets[0].check_kept()
    assert record.units == record.weights == {}
    assert record.tensors[f"model.0.words, task {task}"].numbers == nets[0].model[0].weight.numel()
    with pytest.raises(RuntimeError, match="has no mask"):
        outputs(nets[0], task)
    learn(nets[0], task, 5)


def test_a_task_in_training_goes_too() -> None:
    nets = [network(), network()]
    for net, seed in zip(nets, (5, 6), strict=True):
        learn(net, 0, 1)
        learn(net, 1, seed, finish=False)
        net.forget_task(1, reset=True)
        assert net.training_task is None
        assert all(p.grad is None for p in net.parameters())
    one, other = (net.state_dict() for net in nets)
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_frozen_base_has_nothing_to_grow() -> None:
    with pytest.raises(RuntimeError, match=r"PiggybackNetwork.grow: only a HATNetwork has units"):
        network().grow(3)


def test_without_reset_head_and_norms_stay() -> None:
    net = network()
    learn(net, 0, 1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert net.forget_task(0) is None
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, before[k])]
    assert all(k.endswith(("words", "finished")) for k in changed)
