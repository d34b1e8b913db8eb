"""timm's families: converted as they are, trained for two tasks, and the first keeps its bits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn import HATNetwork, PiggybackNetwork, to_hat, to_importance, to_piggyback, to_plain
from maskcl.optim import guard
from tests.nn.zoo import assert_restores

timm = pytest.importorskip("timm")

CLASSES = [3, 3]
SIZE = 32


def resnet() -> nn.Module:
    return timm.create_model("test_resnet", num_classes=3)


def vit() -> nn.Module:
    return timm.create_model("test_vit", num_classes=3, img_size=SIZE, depth=2)


def densenet() -> nn.Module:
    return timm.create_model("densenet121", num_classes=3, block_config=(2, 3), growth_rate=8)


def mobilenetv2() -> nn.Module:
    return _one_block_a_stage(timm.create_model("mobilenetv2_035", num_classes=3))


def mobilenetv3() -> nn.Module:
    return _one_block_a_stage(timm.create_model("mobilenetv3_small_050", num_classes=3))


def _one_block_a_stage(model: nn.Module) -> nn.Module:
    for stage in model.blocks:
        del stage[1:]
    return model


def convnext() -> nn.Module:
    return timm.create_model("test_convnext", num_classes=3)


def efficientnet() -> nn.Module:
    return timm.create_model("test_efficientnet", num_classes=3)


def tf_mobilenetv3() -> nn.Module:
    """Padded as TensorFlow does."""
    name = "tf_mobilenetv3_small_minimal_100"
    return _one_block_a_stage(timm.create_model(name, num_classes=3))


FAMILIES: list[Callable[[], nn.Module]] = [
    resnet,
    vit,
    densenet,
    mobilenetv2,
    mobilenetv3,
    convnext,
    efficientnet,
    tf_mobilenetv3,
]
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def model_of(family: Callable[[], nn.Module]) -> nn.Module:
    """With the statistics of a batch in its norms, as a pretrained one has: its outputs vary."""
    torch.manual_seed(0)
    model = family()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(8, seed=5))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model


def train(net: HATNetwork, task: int, protected: bool = True) -> None:
    """Three steps of AdamW with weight decay on random labels."""
    net.begin_task(task)
    optimizer = torch.optim.AdamW(net.task_parameters(task), lr=1e-2, weight_decay=0.1)
    protection = net.protection()
    kept = guard(optimizer, protection) if protected else None
    labels = torch.arange(8) % CLASSES[task]
    net.train()
    for scale in (1.0, 10.0, 100.0):
        optimizer.zero_grad()
        with net.task(task, scale):
            F.cross_entropy(net(images(8, seed=task)), labels).backward()
        if protected:
            protection.clamp_()
        optimizer.step()
    if kept is not None:
        kept.remove()
    net.finish_task(task)
    net.eval()


@torch.no_grad()
def logits(net: nn.Module, task: int) -> Tensor:
    assert isinstance(net, (HATNetwork, PiggybackNetwork))
    net.eval()
    with net.task(task):
        return net(images(8, seed=9))


@families
def test_two_tasks_and_the_first_keeps_its_bits(family: Callable[[], nn.Module]) -> None:
    net = to_hat(model_of(family), 2, images(2), classes=CLASSES)
    with torch.no_grad():  # mostly open: half closed silences the deep ones
        for embedding in net.embeddings:
            embedding.add_(0.7)
    train(net, 0)
    known, before = logits(net, 0), net.protection().snapshot()
    assert bool(known.isfinite().all()) and bool((known[0] != known[1]).any())
    train(net, 1)
    moved = [not torch.equal(a, b) for a, b in zip(before, net.protection().parameters)]
    assert sum(moved) > len(moved) / 2
    assert torch.equal(logits(net, 0), known)
    # AdamW could be kind: whatever else may move.
    assert_restores(net, images(4, seed=9))


@families
def test_all_gates_open_give_the_plain_models_outputs(family: Callable[[], nn.Module]) -> None:
    model, x = model_of(family).eval(), images(4)
    net = to_hat(model, 1, images(2), init="dense")
    net.finish_task(0)
    with torch.no_grad(), net.eval().task(0):
        found, wanted = net(x), model(x)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(to_plain(net, 0)(x), wanted, rtol=1e-5, atol=1e-5)


def test_without_protection_it_would_forget_and_that_is_noticed() -> None:
    net = to_hat(model_of(vit), 2, images(2), classes=CLASSES)
    train(net, 0)
    known = logits(net, 0)
    with pytest.raises(RuntimeError, match="what finished tasks need has changed"):
        train(net, 1, protected=False)
    assert not torch.equal(logits(net, 0), known)


@pytest.mark.parametrize("family", [vit, convnext, efficientnet], ids=lambda f: f.__name__)
def test_piggyback_keeps_the_bits_of_the_first_task(family: Callable[[], nn.Module]) -> None:
    net = to_piggyback(model_of(family), 2, classes=CLASSES)
    known = None
    for task in range(2):
        net.begin_task(task)
        optimizer = torch.optim.AdamW(net.task_parameters(task), lr=1e-2, weight_decay=0.1)
        net.train()
        before = [p.detach().clone() for p in net.task_parameters(task)]
        for _ in range(2):
            optimizer.zero_grad()
            with net.task(task):
                F.cross_entropy(net(images(8, seed=task)), torch.arange(8) % 3).backward()
            optimizer.step()
        after = net.task_parameters(task)
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        net.finish_task(task)
        known = known if known is not None else logits(net, 0)
    assert torch.equal(logits(net, 0), known)


def test_importance_network_of_a_family_gives_the_plain_models_outputs() -> None:
    model = model_of(vit).eval()
    net = to_importance(model, 2).eval()
    with torch.no_grad(), net.task(1):
        assert torch.equal(net(images(4)), model(images(4)))
