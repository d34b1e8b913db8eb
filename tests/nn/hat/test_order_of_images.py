"""Convolutions in training leave closed channels out of images in the ordinary order too."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import backends
from maskcl.nn import to_hat
from maskcl.nn.hat import layers

SCALE = 400.0


pytestmark = pytest.mark.skipif(
    backends.BACKENDS["cpp"].absent is not None, reason=str(backends.BACKENDS["cpp"].absent)
)


def network(window=3, norm=False):
    torch.manual_seed(0)
    parts = [nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, window), nn.ReLU()]
    if norm:
        parts.insert(1, nn.BatchNorm2d(24))
    model = nn.Sequential(*parts, nn.Flatten(), nn.LazyLinear(5))
    x = torch.randn(4, 16, 7, 6)
    model(x)
    return to_hat(model, 1, x).train(), x


def opened(net, share):
    with torch.no_grad():
        embedding = net.embeddings[0]
        embedding.fill_(-6.0)
        embedding[torch.randperm(len(embedding))[: round(share * len(embedding))]] = 6.0


@pytest.fixture
def rearranged(monkeypatch):
    """Layouts of the images that reach the ops that may skip channels."""
    seen = []
    for name in ("masked_conv", "open_conv"):
        inner = getattr(layers, name)

        def spy(x, *args, inner=inner, **options):
            seen.append(not x.is_contiguous())
            return inner(x, *args, **options)

        monkeypatch.setattr(layers, name, spy)
    return seen


@pytest.mark.parametrize("norm", [False, True])
def test_half_closed_they_are_rearranged_and_put_back(rearranged, norm):
    net, x = network(norm=norm)
    opened(net, 0.5)
    shapes = []
    for module in net.model:
        module.register_forward_hook(lambda *args: shapes.append(args[2].is_contiguous()))
    with net.task(0, scale=SCALE):
        y = net(x)
    assert rearranged == [True, True] and all(shapes)
    grads = torch.autograd.grad(y.square().sum(), list(net.model.parameters()))
    assert all(bool(g.isfinite().all()) for g in grads)


def test_the_values_are_those_of_the_formula():
    net, x = network()
    opened(net, 0.5)
    first, second = net.model[0], net.model[2]
    x.requires_grad_()
    with net.task(0, scale=SCALE):
        y = net(x)
    masks = torch.sigmoid(SCALE * net.embeddings[0])
    a = F.relu(F.conv2d(x, first.weight, first.bias, padding=1)) * masks[:24, None, None]
    b = F.relu(F.conv2d(a, second.weight, second.bias)) * masks[24:, None, None]
    wanted = F.linear(b.flatten(1), net.model[-1].weight, net.model[-1].bias)
    torch.testing.assert_close(y, wanted, rtol=1e-4, atol=1e-4)
    leaves = [x, first.weight, first.bias, second.weight, second.bias]
    found = torch.autograd.grad(y.square().sum(), leaves)
    right = torch.autograd.grad(wanted.square().sum(), leaves)
    for g, w in zip(found, right, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("case", ["open", "window", "evaluation", "hard", "double", "reference"])
def test_where_it_does_not_pay_they_stay_as_they_are(rearranged, case):
    net, x = network(window=1 if case == "window" else 3)
    opened(net, 1.0 if case == "open" else 0.5)
    if case == "double":
        net, x = net.double(), x.double()
    scale = None if case == "hard" else SCALE
    backend = backends.use_backend("reference") if case == "reference" else nullcontext()
    with torch.set_grad_enabled(case != "evaluation"), net.task(0, scale=scale), backend:
        net(x)
    assert rearranged == [case == "window", False]


def test_a_compiled_network_takes_them_as_they_are():
    net, x = network()
    opened(net, 0.5)
    with net.task(0, scale=SCALE):
        wanted = net(x)
        found = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_weights_in_channels_last_give_images_in_that_order_as_in_torch(rearranged):
    net, x = network()
    net = net.to(memory_format=torch.channels_last)
    for share in (1.0, 0.5):
        opened(net, share)
        with net.task(0, scale=SCALE):
            net(x)
            y = net.model[0](x)
        wanted = F.conv2d(x, net.model[0].weight, net.model[0].bias, padding=1)
        assert y.stride() == wanted.stride()
