"""The promise: what a finished task computes keeps its bits, whatever is trained after it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.nn import HATNetwork, to_hat
from tests.nn.zoo import MODELS, images

CLASSES = [3, 2, 4]


def train(net: HATNetwork, task: int, steps: int, rule: str = "hat") -> list[float]:
    """Plain SGD on random labels, gates annealed, protected gradients clamped."""
    net.configure_gate(max_scale=50.0)
    net.begin_task(task)
    optimizer = torch.optim.SGD(net.task_parameters(task), lr=0.2)
    protection = net.protection()
    x = images(32, seed=task)
    y = torch.randint(CLASSES[task], (32,), generator=torch.Generator().manual_seed(task))
    losses = []
    net.train()
    for step in range(steps):
        optimizer.zero_grad()
        with net.task(task, 0.02 + 50.0 * step / steps):
            loss = F.cross_entropy(net(x), y) + 0.1 * net.sparsity()
        loss.backward()
        protection.clamp_(rule)
        optimizer.step()
        losses.append(float(loss.detach()))
    net.finish_task(task)
    return losses


@torch.no_grad()
def logits(net: HATNetwork, task: int) -> Tensor:
    net.eval()
    with net.task(task):
        return net(images(40, seed=99))


@pytest.mark.parametrize("name", list(MODELS))
def test_earlier_logits_keep_their_bits(name: str) -> None:
    net = to_hat(MODELS[name](), 3, images(2), classes=CLASSES)
    known: dict[int, Tensor] = {}
    for task in range(3):
        before = [p.detach().clone() for p in net.protection().parameters]
        losses = train(net, task, 30)
        assert min(losses) < losses[0]
        moved = zip(before, net.protection().parameters, strict=True)
        assert any(not torch.equal(a, b) for a, b in moved), "nothing was trained"
        for earlier, wanted in known.items():
            assert torch.equal(logits(net, earlier), wanted)
        known[task] = logits(net, task)
        assert bool(known[task].isfinite().all())


def test_a_shared_head_keeps_earlier_logits_too() -> None:
    net = to_hat(MODELS["conv"](), 3, images(2))
    known: dict[int, Tensor] = {}
    for task in range(3):
        before = net.model[12].weight.detach().clone()
        train_shared(net, task)
        if task == 1:
            assert not torch.equal(before, net.model[12].weight), "the shared head trains on"
        for earlier, wanted in known.items():
            assert torch.equal(logits(net, earlier), wanted)
        known[task] = logits(net, task)


def train_shared(net: HATNetwork, task: int) -> None:
    with torch.no_grad():  # leave room for the next tasks
        net.embeddings[task].copy_(
            torch.where(torch.rand_like(net.embeddings[task]) < 0.4, 2.0, -2.0)
        )
    net.begin_task(task)
    optimizer = torch.optim.SGD(net.task_parameters(task), lr=0.1)
    net.train()
    for _ in range(10):
        optimizer.zero_grad()
        with net.task(task, 20.0):
            net(images(16, seed=task)).square().mean().backward()
        net.protection().clamp_()
        optimizer.step()
    net.finish_task(task)


def test_without_the_clamp_it_would_forget() -> None:
    """The test above can fail: rule const with factor 1 leaves every gradient as it was."""
    net = to_hat(MODELS["mlp"](), 3, images(2), classes=CLASSES)
    train(net, 0, 20)
    wanted = logits(net, 0)
    net.begin_task(1)
    optimizer = torch.optim.SGD(net.task_parameters(1), lr=0.2)
    for _ in range(5):
        optimizer.zero_grad()
        with net.task(1, 5.0):
            net(images(32)).square().sum().backward()
        net.protection().clamp_("const", values=1.0)
        optimizer.step()
    assert not torch.equal(logits(net, 0), wanted)


def test_restoring_protects_from_an_optimizer_that_moves_everything() -> None:
    net = to_hat(MODELS["residual"](), 3, images(2), classes=CLASSES)
    train(net, 0, 10)
    wanted = logits(net, 0)
    protection = net.protection()
    saved = protection.snapshot()
    net.begin_task(1)
    optimizer = torch.optim.AdamW(net.task_parameters(1), lr=0.1, weight_decay=0.3)
    net.train()
    for _ in range(5):
        optimizer.zero_grad()
        with net.task(1, 5.0):
            net(images(16)).square().sum().backward()
        optimizer.step()
        protection.restore_(saved)
    assert torch.equal(logits(net, 0), wanted)


def test_capacity_used_up_stays_finite_and_keeps_everything() -> None:
    net = to_hat(MODELS["residual"](), 3, images(2), classes=CLASSES, init="dense")
    for task in (0, 1):
        with torch.no_grad():
            net.embeddings[task].fill_(6.0)
        losses = train(net, task, 6)
        assert all(map(torch.isfinite, map(torch.tensor, losses)))
        assert set(net.capacity().values()) == {1.0}
        if task == 0:
            wanted = logits(net, 0)
            weights = [p.detach().clone() for p in net.protection().parameters]
    assert torch.equal(logits(net, 0), wanted)
    assert all(torch.equal(a, b) for a, b in zip(weights, net.protection().parameters, strict=True))
