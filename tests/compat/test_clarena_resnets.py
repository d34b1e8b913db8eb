from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from maskcl.compat.clarena import backbones
from maskcl.compat.clarena.backbones import HATMaskResNet18, HATMaskResNet50, ResNet18
from maskcl.compat.clarena.backbones.resnet_blocks import load_torchvision
from maskcl.compat.clarena.heads import HeadsTIL
from tests.compat.clarena_tiny import hat, logits, train

IMAGE = (3, 16, 16)


@pytest.mark.parametrize(("depth", "blocks"), [(18, 8), (34, 16), (50, 16), (101, 33), (152, 50)])
def test_layers_are_named_as_clarenas(depth: int, blocks: int) -> None:
    large = depth >= 50
    with torch.device("meta"):
        plain = getattr(backbones, f"ResNet{depth}")(3, 2048 if large else 512)
        masked = getattr(backbones, f"HATMaskResNet{depth}")(3, plain.output_dim, "sigmoid")
    names = masked.weighted_layer_names
    assert names == plain.weighted_layer_names
    assert len(names) == 1 + blocks * (3 if large else 2) == depth - 1
    assert names[:3] == ["conv1", "conv2x/0/conv1", "conv2x/0/conv2"]
    last = "conv3" if large else "conv2"
    assert (
        masked.preceding_layer_name("conv3x/0/conv1") == f"conv2x/{2 if depth > 18 else 1}/{last}"
    )
    assert masked.get_layer_by_name("conv4x/0/conv2") is masked.conv4x[0].conv2
    assert masked.conv4x[0].conv2.stride == (2, 2) and masked.conv4x[0].conv1.stride == (1, 1)
    for name in names:
        channels = masked.get_layer_by_name(name).out_channels
        assert masked.task_embedding_t[name].weight.shape == (1, channels)


def test_a_block_finds_a_layer_by_its_full_name() -> None:
    net = ResNet18(3, 512)
    block = net.conv3x[0]
    outer = net.get_layer_by_name("conv3x/0/conv1")
    assert outer is block.conv1
    assert net.conv2x[0].identity_downsample is None
    assert isinstance(block.identity_downsample, nn.Conv2d)


def test_forward_of_a_block_with_masks() -> None:
    net = HATMaskResNet18(3, 512, "sigmoid", batch_normalisation="shared").eval()
    x = torch.randn(2, *IMAGE)
    y, mask, activations = net(x, "validation", s_max=2.0)
    first = torch.relu(net.conv_bn1(net.conv1(x))) * mask["conv1"].view(-1, 1, 1)
    torch.testing.assert_close(activations["conv1"], first)
    block, before = net.conv3x[0], activations["conv2x/1/conv2"]
    inner = torch.relu(block.conv_bn1(block.conv1(before)))
    inner = inner * mask["conv3x/0/conv1"].view(-1, 1, 1)
    total = block.conv_bn2(block.conv2(inner)) + block.identity_downsample(before)
    wanted = torch.relu(total) * mask["conv3x/0/conv2"].view(-1, 1, 1)
    torch.testing.assert_close(activations["conv3x/0/conv2"], wanted)
    assert y.shape == (2, 512) and list(activations) == net.weighted_layer_names


def test_open_masks_give_the_plain_network() -> None:
    masked = HATMaskResNet18(3, 512, "sigmoid", batch_normalization="shared").eval()
    plain = ResNet18(3, 512).eval()
    plain.load_state_dict(masked.state_dict(), strict=False)
    x = torch.randn(2, *IMAGE)
    torch.testing.assert_close(masked(x, "unlearning_test")[0], plain(x)[0])


@pytest.mark.parametrize("bn", [None, "independent"])
def test_a_resnet_forgets_nothing(bn: str | None) -> None:
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)
    net = HATMaskResNet18(3, 512, "sigmoid", batch_normalization=bn)
    algorithm = hat(backbone=net, heads=HeadsTIL(512))
    train(algorithm, 1, 2, sgd, shape=IMAGE)
    before = logits(algorithm, 1, IMAGE)
    weights = [p.detach().clone() for p in net.protection().parameters]
    train(algorithm, 2, 2, sgd, shape=IMAGE)
    assert torch.equal(logits(algorithm, 1, IMAGE), before)
    moved = [not torch.equal(p, old) for p, old in zip(net.protection().parameters, weights)]
    assert all(moved), "what is free learns in every layer"
    assert before.abs().sum() > 0


def test_the_shortcuts_convolution_is_protected() -> None:
    net = HATMaskResNet50(3, 2048, "sigmoid")
    names = net.protection().names
    found = [name for name in names if "identity_downsample" in name]
    assert found == [f"conv{i}x.0.identity_downsample.weight" for i in range(2, 6)]


def test_torchvisions_weights() -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = models.resnet18(weights=None)
    theirs.bn1.running_var.fill_(3)
    called: list[str] = []

    def fake(weights: str) -> nn.Module:
        called.append(weights)
        return theirs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "resnet18", fake)
        net = HATMaskResNet18(
            3, 512, "sigmoid", batch_normalization="independent", pretrained_weights="DEFAULT"
        )
        with pytest.raises(RuntimeError, match="size mismatch"):
            load_torchvision(ResNet18(1, 512), 18, "DEFAULT")
    assert called == ["DEFAULT", "DEFAULT"]
    assert torch.equal(net.conv3x[1].conv2.weight, theirs.layer2[1].conv2.weight)
    assert torch.equal(
        net.conv5x[0].identity_downsample.weight, theirs.layer4[0].downsample[0].weight
    )
    with torch.no_grad():
        net.conv_bn1.weight.zero_()
        net.conv_bn1.running_var.zero_()
    net.initialize_independent_bn()
    assert (net.conv_bn1.running_var == 3).all()
    assert (net.conv_bn1.weight == 1).all(), "every task begins with what was loaded"


def test_wrong_output_dim() -> None:
    with pytest.raises(ValueError, match="output_dim is 100, wanted 512"):
        ResNet18(3, 100)
