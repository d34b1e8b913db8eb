from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

from maskcl.compat.clarena import backbones
from maskcl.compat.clarena.backbones import HATMaskResNet18, HATMaskResNet50, ResNet18
from maskcl.compat.clarena.backbones.resnet import (
    HATMaskResNetBase,
    HATMaskResNetBlockLarge,
    HATMaskResNetBlockSmall,
    ResNetBase,
    ResNetBlockLarge,
    ResNetBlockSmall,
)
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


def test_a_block_is_a_backbone_of_its_own() -> None:
    block = HATMaskResNetBlockLarge(
        "conv3x", 0, 16, 4, 2, "sigmoid", batch_normalization="independent"
    )
    names = [block.full_1st_layer_name, block.full_2nd_layer_name, block.full_3rd_layer_name]
    assert names == block.weighted_layer_names == [f"conv3x/0/conv{i}" for i in (1, 2, 3)]
    x = torch.randn(2, 16, 8, 8)
    for task in (1, 2):
        block.setup_task_id(task)
        block.initialize_task_embedding("N01")
        block(x, "train", 9.0, 1, 3)[0].sum().backward()
        block.store_mask()
        block.store_bn()
    block.eval()
    y, mask, activations = block(x, "test", None, None, None, 1)
    assert y.shape == (2, 16, 4, 4) and torch.equal(y, activations["conv3x/0/conv3"])
    assert torch.equal(mask["conv3x/0/conv2"], block.masks[1]["conv3x/0/conv2"])
    assert (y[:, block.masks[1]["conv3x/0/conv3"] == 0] == 0).all()
    assert block.get_bn("train", None) == tuple(getattr(block, f"conv_bn{i}") for i in (1, 2, 3))
    assert block.get_bn("test", 2)[2] is block.conv_bn3s["2"]
    assert (block.original_conv_bn2_state_dict["running_var"] == 1).all()
    names = block.protection().names
    assert "conv3x.0.identity_downsample.weight" in names and len(names) == 4
    plain = ResNetBlockSmall("conv2x", 1, 4, 4, 1, batch_normalization=False, bias=True)
    x = torch.randn(2, 4, 5, 5)
    y, activations = plain(x)
    assert torch.equal(y, torch.relu(plain.conv2(activations["conv2x/1/conv1"]) + x))
    with pytest.raises(AttributeError, match="conv_bn3s"):
        _ = HATMaskResNetBlockLarge("a", 0, 4, 1, 1, "sigmoid").original_conv_bn3_state_dict


def test_blocks_have_their_parts_of_the_networks_masks() -> None:
    net = HATMaskResNet18(3, 512, "sigmoid", batch_normalization="independent")
    block, name = net.conv3x[1], "conv3x/1/conv2"
    assert block.task_embedding_t[name] is net.task_embedding_t[name]
    assert net.original_conv_bn1_state_dict.keys() == net.conv_bn1.state_dict().keys()
    net.setup_task_id(3)
    net.store_mask()
    net.store_bn()
    assert block.task_id == 3 and torch.equal(block.masks[3][name], net.masks[3][name])
    net.eval()
    x = torch.randn(1, *IMAGE)
    seen: list[Any] = []
    hook = block.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    net(x, "test", test_task_id=3)
    hook.remove()
    before, (after, _, _) = seen[0]
    assert torch.equal(block(before, "test", test_task_id=3)[0], after)
    # A file has the masks once, and gives them to the blocks.
    state = net.state_dict()
    assert not any("conv3x.1.task" in key or "conv3x.1.embedding" in key for key in state)
    other = HATMaskResNet18(3, 512, "sigmoid", batch_normalization="independent")
    other.load_state_dict(state)
    assert torch.equal(other.conv3x[1].masks[3][name], net.masks[3][name])
    assert other.conv3x[1].task_embedding_t[name] is other.task_embedding_t[name]
    with torch.no_grad():
        block.task_embedding_t[name].weight.fill_(2.0)
    net.task_embedding_t.pop(name)
    net.update_multiple_blocks_task_embedding()
    assert (net.get_mask("validation", 40.0)[name] > 0.99).all()


class Wide(HATMaskResNetBlockSmall):
    """A block of a user's, whose forward is as CLArena's."""

    def forward(  # type: ignore[override]
        self,
        input: torch.Tensor,
        stage: str,
        s_max: float | None = None,
        batch_idx: int | None = None,
        num_batches: int | None = None,
        test_task_id: int | None = None,
    ) -> Any:
        return super().forward(input, stage, s_max, batch_idx, num_batches, test_task_id)


@pytest.mark.parametrize("block", [HATMaskResNetBlockSmall, Wide])
def test_a_resnet_of_ones_own_blocks_and_numbers(block: Any) -> None:
    net = HATMaskResNetBase(3, block, (1, 1, 2, 1), (64, 8, 12, 8), (8, 12, 8, 16), 16, "sigmoid")
    assert len(net.weighted_layer_names) == 11 and net.conv4x[1].conv1.in_channels == 8
    algorithm = hat(backbone=net, heads=HeadsTIL(16))
    sgd = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    train(algorithm, 1, 2, sgd, shape=IMAGE)
    before = logits(algorithm, 1, IMAGE)
    train(algorithm, 2, 2, sgd, shape=IMAGE)
    assert torch.equal(logits(algorithm, 1, IMAGE), before)
    plain = ResNetBase(3, ResNetBlockLarge, (1, 1, 1, 1), (64, 8, 8, 8), (2, 2, 2, 2), 8)
    assert plain(torch.randn(2, *IMAGE))[0].shape == (2, 8)
    with pytest.raises(ValueError, match="output_dim is 9, wanted 16"):
        HATMaskResNetBase(3, block, (1, 1, 1, 1), (64, 8, 12, 8), (8, 12, 8, 16), 9, "sigmoid")
