"""Convolutions in training leave closed channels out of images in the ordinary order too."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import backends
from maskcl.nn import to_hat

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


def spoil_what_closed_units_meet(net):
    """NaN in the second convolution, where its input is closed: what is left out is not seen."""
    closed = net.embeddings[0][:24] < 0
    with torch.no_grad():
        net.model[-4].weight[:, closed] = torch.nan


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("window", [1, 3])
def test_half_closed_channels_are_left_out_and_images_stay_in_their_order(norm, window):
    net, x = network(window, norm)
    opened(net, 0.5)
    if window == 3 or not norm:  # a window of one pixel has too little to do for a look of its own
        spoil_what_closed_units_meet(net)
    orders = []
    for module in net.model:
        module.register_forward_hook(lambda *args: orders.append(args[2].is_contiguous()))
    with net.task(0, scale=SCALE):
        y = net(x)
    assert y.isfinite().all() and orders and all(orders)
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


@pytest.mark.parametrize("case", ["evaluation", "hard", "double", "reference"])
def test_elsewhere_nothing_is_left_out(case):
    net, x = network()
    opened(net, 0.5)
    spoil_what_closed_units_meet(net)
    if case == "double":
        net, x = net.double(), x.double()
    scale = None if case == "hard" else SCALE
    backend = backends.use_backend("reference") if case == "reference" else nullcontext()
    with torch.set_grad_enabled(case != "evaluation"), net.task(0, scale=scale), backend:
        assert net(x).isnan().all()


def test_a_compiled_network_takes_them_as_they_are():
    net, x = network()
    opened(net, 0.5)
    with net.task(0, scale=SCALE):
        wanted = net(x)
        found = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_weights_in_channels_last_give_images_in_that_order_as_in_torch():
    net, x = network()
    net = net.to(memory_format=torch.channels_last)
    for share in (1.0, 0.5):
        opened(net, share)
        with net.task(0, scale=SCALE):
            net(x)
            y = net.model[0](x)
        wanted = F.conv2d(x, net.model[0].weight, net.model[0].bias, padding=1)
        assert y.stride() == wanted.stride()
