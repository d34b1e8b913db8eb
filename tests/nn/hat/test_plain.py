"""to_plain: one task's network without masks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskcl.nn import HATLinear, HATNetwork, TaskLayerNorm, to_hat, to_plain
from maskcl.nn.hat.plain import UnitMask
from maskcl.nn.tasks.state import TaskAware
from tests.nn.zoo import MODELS, images

# Only activations whose fused form is exact; the others' may differ in the last bit.
EXACT = {"mlp", "residual", "concat"}


@torch.no_grad()
def warmed(name: str, classes: list[int] | None) -> HATNetwork:
    """A network with statistics and an affine of their own for each task."""
    net = to_hat(MODELS[name](), 3, images(2), classes=classes).train()
    for parameter in net.model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    for k in range(3):
        with net.task(k):
            net(images(16, seed=k))
    net.finish_task(2)
    return net.eval()


@pytest.mark.parametrize("classes", [[2, 3, 4], None], ids=["heads", "shared"])
@pytest.mark.parametrize("name", list(MODELS))
@torch.no_grad()
def test_same_outputs_for_every_task(name: str, classes: list[int] | None) -> None:
    net = warmed(name, classes)
    for k in range(3):
        plain = to_plain(net, k)
        assert not any(isinstance(m, TaskAware) for m in plain.modules())
        assert not any(m.training for m in plain.modules())
        with net.task(k):
            wanted = net(images(30))
        if name in EXACT:
            assert torch.equal(plain(images(30)), wanted)
        else:
            torch.testing.assert_close(plain(images(30)), wanted, rtol=1e-5, atol=1e-6)


def test_it_is_the_original_architecture_with_zeros_for_closed_units() -> None:
    model = MODELS["conv"]()
    net = to_hat(model, 2, images(2))
    plain = to_plain(net, 1)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert [type(m) for m in plain] == [type(m) for m in model]
    closed = ~net.hard_mask(1)[net.units["4"]]
    assert 0 < closed.sum() < 8
    assert not plain[4].weight[closed].any()
    assert not plain[4].bias[closed].any()
    assert bool(plain[4].weight[~closed].any())


def test_it_shares_nothing_with_the_network() -> None:
    net, x = to_hat(MODELS["conv"](), 2, images(2)).eval(), images(4)
    plain = to_plain(net, 0)
    with torch.no_grad():
        wanted = plain(x)
        for tensor in net.state_dict().values():
            tensor.zero_()
        assert torch.equal(plain(x), wanted)
    assert {t.data_ptr() for t in net.parameters()}.isdisjoint(
        t.data_ptr() for t in plain.parameters()
    )


@torch.no_grad()
def test_an_activation_that_does_not_keep_zero_gets_an_explicit_mask() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2))
    net, x = to_hat(model, 1, torch.randn(2, 4)).eval(), torch.randn(9, 4)
    plain = to_plain(net, 0)
    assert isinstance(plain[1][1], UnitMask)
    with net.task(0):
        torch.testing.assert_close(plain(x), net(x))
        hidden = plain[1](plain[0](x))
        assert torch.equal(hidden == 0, (~net.hard_mask(0)).expand(9, -1))


@torch.no_grad()
def test_layers_with_an_activation_of_their_own_become_a_sequence() -> None:
    model = nn.Sequential(
        HATLinear(4, 6, activation="relu"),
        TaskLayerNorm(6, 1, elementwise_affine=False, activation="leaky_relu", negative_slope=0.3),
        HATLinear(6, 2),
    )
    net, x = HATNetwork(model, 1, torch.randn(2, 4)).eval(), torch.randn(9, 4)
    plain = to_plain(net, 0)
    assert [type(m) for m in plain[0]] == [nn.Linear, nn.ReLU]
    assert [type(m) for m in plain[1]] == [nn.LayerNorm, UnitMask, nn.LeakyReLU]
    with net.task(0):
        assert torch.equal(plain(x), net(x))


def test_no_such_task() -> None:
    net = to_hat(MODELS["mlp"](), 2, images(2))
    with pytest.raises(ValueError, match="task is 2, wanted an int from 0 to 1"):
        to_plain(net, 2)
