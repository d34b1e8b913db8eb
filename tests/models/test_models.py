"""Backbones: sizes by hand, small images, modules that conversion can fuse."""

import pytest
import torch
from torch import nn

from maskcl import models


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", models.NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_outputs_have_one_column_a_class(name, shape):
    x = torch.rand(2, *shape)
    with torch.no_grad():
        y = models.build(name, shape, 7).eval()(x)
    assert y.shape == (2, 7)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", models.NAMES)
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
    assert functions <= {"add"}


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
        (lambda: models.mlp((4,), 2, hidden=()), "one or more widths"),
        (lambda: models.mlp((4,), 2, dropout=1.0), r"dropout must be in \[0, 1\), got 1\.0"),
    ],
)
def test_bad_arguments_are_refused(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
