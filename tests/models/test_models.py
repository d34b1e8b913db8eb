"""Backbones: sizes by hand, small images, modules that conversion can fuse."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from maskcl import models


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("name", ["mlp", "conv", "resnet18", "resnet50", "vit_tiny"])
def test_outputs_have_one_column_a_class(name, shape):
    x = torch.rand(2, *shape)
    with torch.no_grad():
        y = models.build(name, shape, 7).eval()(x)
    assert y.shape == (2, 7)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", ["mlp", "conv", "resnet34", "resnet50", "vit_tiny"])
def test_every_module_runs_once_and_activations_are_modules(name):
    model = models.build(name, (1, 8, 8), 2)
    calls = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: calls.append(id(module)))
    functions = set()
    with torch.no_grad():
        model.eval()(torch.rand(1, 1, 8, 8))
    for node in torch.fx.symbolic_trace(model).graph.nodes:
        if node.op in ("call_function", "call_method"):
            functions.add(getattr(node.target, "__name__", node.target))
    assert len(calls) == len(set(calls))
    moves = {"cat", "expand", "flatten", "getattr", "getitem", "permute", "transpose", "unbind"}
    shapes = {"unflatten", "scaled_dot_product_attention"}
    assert functions <= {"add"} | (moves | shapes if name == "vit_tiny" else set())


@pytest.mark.parametrize("depth", models.resnet.DEPTHS)
def test_resnets_have_torchvisions_names_and_shapes(depth):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
        ours = models.build(f"resnet{depth}", (3, 64, 64), 7)
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (theirs, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("depth", [18, 50])
def test_resnets_compute_what_torchvisions_do(depth):
    theirs = getattr(torchvision.models, f"resnet{depth}")(num_classes=7)
    ours = models.build(f"resnet{depth}", (3, 64, 64), 7)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, 64, 64)
    for mode in (True, False):  # the first warms the statistics
        with torch.no_grad():
            assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))


@pytest.mark.parametrize(("name", "size", "patch"), [("tiny", 64, 16), ("small", 16, 4)])
def test_vits_compute_what_timms_do(name, size, patch):
    theirs = timm.create_model(
        f"vit_{name}_patch16_224", num_classes=7, img_size=size, patch_size=patch
    )
    ours = models.build(f"vit_{name}", (3, size, size), 7)
    ours.load_state_dict(theirs.state_dict())
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-5, atol=1e-6)


def test_parameter_counts():
    assert parameters(models.mlp((1, 8, 8), 10)) == 64 * 200 + 200 + 200 * 200 + 200 + 2010
    # The paper's 7.1 M network: 32x32 colour images.
    found = parameters(models.conv((3, 32, 32), 10))
    convolutions = (48 + 1) * 64 + (64 * 9 + 1) * 128 + (128 * 4 + 1) * 256
    linear = (256 * 4 + 1) * 2048 + (2048 + 1) * 2048 + 2049 * 10
    assert found == convolutions + linear
    # He et al.'s CIFAR variant with 10 classes.
    assert parameters(models.resnet18((3, 32, 32), 10)) == 11_173_962


def test_large_images_get_no_padding_and_small_ones_do():
    def paddings(size):
        net = models.conv((1, size, size), 2)
        return [m.padding[0] for m in net.modules() if isinstance(m, nn.Conv2d)]

    assert paddings(28) == paddings(19) == [0, 0, 0]
    assert paddings(18) == paddings(8) == [2, 1, 1]


@pytest.mark.parametrize("size", [3, 4, 5, 18, 19, 20, 27])
def test_conv_runs_at_every_size_it_accepts(size):
    net = models.conv((1, size, size + 1), 2, width=2, hidden=4).eval()
    assert net(torch.rand(1, 1, size, size + 1)).shape == (1, 2)


def test_dropout_follows_every_hidden_layer():
    net = models.mlp((4,), 2, hidden=(3, 3), dropout=0.5)
    assert [m.p for m in net if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert not [m for m in models.mlp((4,), 2) if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: models.build("vgg", (1, 8, 8), 2), "unknown model 'vgg': known are mlp, conv"),
        (lambda: models.build("conv", (1, 8, 8), 2, hidden=(3,)), "hidden belongs to the mlp"),
        (lambda: models.build("resnet18", (1, 8, 8), 2, dropout=0.1), "dropout belongs to the mlp"),
        (lambda: models.conv((1, 2, 8), 2), "at least 3x3, got shape"),
        (lambda: models.resnet18((64,), 2), r"got shape \(64,\)"),
        (lambda: models.resnet.ResNet(20, (1, 8, 8), 2), "depth is 20, wanted one of 18, 34, 50"),
        (lambda: models.resnet50((1, 8, 8), 2, stem="large"), "stem is 'large', wanted one of"),
        (lambda: models.vit_tiny((1, 8, 9), 2), "patch is 4, wanted a divisor of .* 8 and 9"),
        (lambda: models.vit.ViT((1, 8, 8), 2, heads=5), "heads is 5, wanted a divisor of width"),
        (lambda: models.mlp((4,), 2, hidden=()), "one or more widths"),
        (lambda: models.mlp((4,), 2, dropout=1.0), r"dropout must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
