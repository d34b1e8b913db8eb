"""Outputs in training beside those in evaluation and an ordinary layer's: the last bits count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.modules import (
    HATConv1d,
    HATConv2d,
    HATConv3d,
    HATLinear,
    TaskIndexedBatchNorm2d,
    conv,
)
from maskcl.compat.hat_cl.utils import convert_to_base_module
from tests.compat.hat_tiny import TASKS, config

SCALE = 400.0
LAYERS = {
    "linear": (lambda: HATLinear(32, 16, config(max_trn_mask_scale=SCALE)), (32,)),
    "conv1d": (lambda: HATConv1d(32, 16, 3, config(max_trn_mask_scale=SCALE)), (32, 64)),
    "conv2d": (lambda: HATConv2d(32, 16, 2, config(max_trn_mask_scale=SCALE)), (32, 8, 8)),
    "conv3d": (lambda: HATConv3d(32, 16, 1, config(max_trn_mask_scale=SCALE)), (32, 4, 4, 4)),
}


def decided(net: nn.Module) -> nn.Module:
    """Gates far from the middle, so that at the largest scale they are open or closed."""
    for name, scores in net.named_parameters():
        if "attention" in name:
            scores.data += 0.5 * torch.sign(scores.data)
    return net


def run(net: nn.Module, x: torch.Tensor, task: int | None, scale: float | None = None) -> Any:
    return hat.HATPayload(x, task_id=task, mask_scale=scale).forward_by(net).data


@pytest.mark.parametrize("name", LAYERS)
def test_training_and_evaluation_agree_as_closely_as_hat_cl_asks(name: str) -> None:
    make, shape = LAYERS[name]
    for seed in range(5):
        torch.manual_seed(seed)
        net = decided(make())
        for task in range(TASKS):
            x = torch.rand(2, *shape)
            trained = run(net.train(), x, task, SCALE)
            # rtol 1e-5 and atol 1e-8: sums in another order would not do, near 0.
            assert torch.allclose(run(net.eval(), x, task), trained)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_converted_module_gives_what_it_was_made_of_gives(name: str, training: bool) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    net = nn.Sequential(make(), nn.ReLU(), nn.Identity()).train(training)
    for task in (None, *range(TASKS)):
        x = torch.rand(2, *shape)
        base = convert_to_base_module(net, task_id=task, trn_mask_scale=3.0).train(training)
        found = run(net, x, task, 3.0 if training else None)
        assert torch.allclose(found, base(x))


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"groups": 4}, {"dilation": 2, "bias": False}]
)
def test_a_small_convolution_in_training_has_the_bits_of_an_ordinary_one(options: Any) -> None:
    torch.manual_seed(0)
    layer = HATConv2d(8, 12, 3, config(), **options).train()
    plain = nn.Conv2d(8, 12, 3, **options)
    plain.load_state_dict({n: p for n, p in layer.state_dict().items() if "masker" not in n})
    x = torch.randn(3, 8, 9, 9)
    mask = layer.masker.get_mask(task_id=1, mask_scale=2.0)
    assert torch.equal(run(layer, x, 1, 2.0), plain(x) * mask.view(-1, 1, 1))


def test_images_of_a_larger_one_train_in_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pooling and leaving out closed channels pay; the data come as nn.Conv2d leaves them."""
    seen: list[bool] = []
    original = HATConv2d.deferred

    def deferred(self: Any, x: torch.Tensor, *rest: Any) -> Any:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return original(self, x, *rest)

    monkeypatch.setattr(HATConv2d, "deferred", deferred)
    torch.manual_seed(0)
    layer, small, large = HATConv2d(16, 32, 3, config()).train(), (2, 16, 8, 8), (8, 16, 32, 32)
    for shape in (small, large):
        assert run(layer, torch.rand(shape), 0, 2.0).is_contiguous()
    assert seen == [False, True]
    run(layer.eval(), torch.rand(large), 0)
    assert seen[2:] == [False]  # in evaluation images stay as they are
    x = torch.rand(large)
    layer.train()
    close = {"rtol": 1e-5, "atol": 1e-6}
    torch.testing.assert_close(run(layer, x, 0, 2.0), _ordinary(monkeypatch, layer, x), **close)


def _ordinary(patch: pytest.MonkeyPatch, layer: HATConv2d, x: torch.Tensor) -> torch.Tensor:
    patch.setattr(conv, "SMALL_PRODUCT", float("inf"))
    return run(layer, x, 0, 2.0)


@pytest.mark.parametrize("small", [0, 2**20])
def test_both_orders_train_alike(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv, "SMALL_PRODUCT", small)
    grads = []
    for order in (small, float("inf")):
        monkeypatch.setattr(conv, "SMALL_PRODUCT", order)
        torch.manual_seed(0)
        net = nn.Sequential(
            HATConv2d(3, 8, 3, config()),
            TaskIndexedBatchNorm2d(TASKS, 8),
            nn.ReLU(),
            nn.MaxPool2d(2),
            HATConv2d(8, 6, 2, config()),
        ).train()
        run(net, torch.rand(4, 3, 12, 12), 2, 5.0).square().sum().backward()
        grads.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-5, msg=name)
