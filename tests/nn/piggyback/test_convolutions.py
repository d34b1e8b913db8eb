"""Convolutions make their masked weight anew in backward: the same bits, less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from maskcl.nn import PiggybackConv1d, PiggybackConv2d, PiggybackConv3d, PiggybackNetwork

CASES: dict[str, tuple[type, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = {
    "1d": (PiggybackConv1d, (4, 6, 3), {"padding": 1}, (2, 4, 9)),
    "2d": (PiggybackConv2d, (4, 6, 3), {"stride": 2, "bias": False}, (2, 4, 9, 9)),
    "3d": (PiggybackConv3d, (2, 3, 2), {"dilation": 2}, (2, 2, 5, 5, 5)),
    "groups": (PiggybackConv2d, (4, 8, 3), {"groups": 4, "padding": (1, 2)}, (2, 4, 7, 8)),
    "same": (PiggybackConv2d, (4, 6, 3), {"padding": "same"}, (2, 4, 7, 7)),
    "valid": (PiggybackConv2d, (4, 6, 3), {"padding": "valid"}, (2, 4, 7, 7)),
    # These keep it as before.
    "odd": (PiggybackConv2d, (4, 6, 2), {"padding": "same"}, (2, 4, 7, 7)),
    "circular": (
        PiggybackConv2d,
        (4, 6, 3),
        {"padding": 1, "padding_mode": "circular"},
        (2, 4, 7, 7),
    ),
    "one image": (PiggybackConv2d, (4, 6, 3), {}, (4, 7, 7)),
}
KEPT = ("odd", "circular", "one image")


def network(name: str, levels: str = "binary") -> tuple[PiggybackNetwork, Any, Tensor]:
    kind, sizes, options, shape = CASES[name]
    torch.manual_seed(0)
    layer = kind(*sizes, num_tasks=1, levels=levels, **options)
    net = PiggybackNetwork(nn.Sequential(layer), 1, levels=levels)
    density = {"density": 0.4} if levels == "topk" else {}
    net.begin_task(0, spread="uniform", **density)
    return net, layer, torch.randn(shape, requires_grad=True)


def results(net: PiggybackNetwork, layer: Any, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of input and scores."""
    x.grad = layer.scores.grad = None
    with net.task(0):
        y = net(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, layer.scores.grad]


def as_before(net: PiggybackNetwork, layer: Any, x: Tensor) -> list[Tensor]:
    """The same by ``F.conv`` with a masked weight that autograd keeps."""
    layer._window = lambda x: None
    try:
        return results(net, layer, x)
    finally:
        del layer._window


@pytest.mark.parametrize("levels", ["binary", "ternary", "topk"])
@pytest.mark.parametrize("name", list(CASES))
def test_outputs_and_gradients_have_the_bits_of_the_masked_weights_convolution(
    name: str, levels: str
) -> None:
    net, layer, x = network(name, levels)
    found, wanted = results(net, layer, x), as_before(net, layer, x)
    assert all(map(torch.equal, found, wanted))
    assert bool(found[2].any())


def test_half_precision_under_autocast_too() -> None:
    net, layer, x = network("2d")
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = results(net, layer, x), as_before(net, layer, x)
    assert found[0].dtype == torch.bfloat16 and found[2].dtype == torch.float32
    assert all(map(torch.equal, found, wanted))


def test_channels_last_stays_channels_last() -> None:
    net, layer, x = network("2d")
    net.to(memory_format=torch.channels_last)
    x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    found, wanted = results(net, layer, x), as_before(net, layer, x)
    assert all(map(torch.equal, found, wanted))
    assert [a.stride() for a in found] == [b.stride() for b in wanted]


@pytest.mark.parametrize("name", [name for name in CASES if name not in KEPT])
def test_nothing_of_the_weights_size_is_kept_for_backward(name: str) -> None:
    net, layer, x = network(name)
    own = {t.untyped_storage().data_ptr() for t in (layer.weight, layer.scores, x)}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor), net.task(0):
        y = net(x)
    assert kept == [] and y.requires_grad


def test_scores_written_before_backward_are_noticed() -> None:
    net, layer, x = network("2d")
    with net.task(0):
        y = net(x)
    with torch.no_grad():
        layer.scores.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_checkpointed_layer_gives_the_same_gradients() -> None:
    net, layer, x = network("groups")
    wanted = results(net, layer, x)
    x.grad = layer.scores.grad = None
    with net.task(0):
        y = checkpoint(net, x, use_reentrant=False)
        assert isinstance(y, Tensor)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    assert all(map(torch.equal, [y.detach(), x.grad, layer.scores.grad], wanted))


def test_transforms_go_by_the_single_steps() -> None:
    net, _, x = network("2d")

    def loss(x: Tensor) -> Tensor:
        with net.task(0):
            return net(x).square().sum()

    found = torch.func.grad(loss)(x.detach())
    loss(x).backward()
    torch.testing.assert_close(found, x.grad)
