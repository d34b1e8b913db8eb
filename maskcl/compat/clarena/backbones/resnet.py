"""Residual networks without masks, with CLArena's names of layers (He et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.plain import CLBackbone
from maskcl.compat.clarena.backbones.resnet_blocks import STAGES, ResNetBlock, load_torchvision
from maskcl.compat.clarena.spelling import spellings

__all__ = [
    "CLResNet101",
    "CLResNet152",
    "CLResNet18",
    "CLResNet34",
    "CLResNet50",
    "ResNet101",
    "ResNet152",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNetBase",
]


class ResNetBase(CLBackbone):
    """Stem ``conv1``, four stages ``conv2x`` to ``conv5x`` of blocks, and a mean over positions.

    Args:
        input_channels: of the images.
        output_dim: 512, or 2048 from ResNet-50 on: what the architecture has.
        activation_layer: class of the activations, or None.
        batch_normalization: BatchNorm behind the convolutions (also ``batch_normalisation``).
        bias: of the convolutions.
        pretrained_weights: name of torchvision's weights of the network of the same depth, or None.
        kwargs: for the next class of a multiple inheritance.

    Raises:
        ValueError: output_dim is not the architecture's.
    """

    depth: ClassVar[int]
    large: ClassVar[bool]
    numbers: ClassVar[tuple[int, int, int, int]]

    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        input_channels: int,
        output_dim: int,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: bool = True,
        bias: bool = False,
        pretrained_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_dim=output_dim, **kwargs)
        features = 512 * (4 if self.large else 1)
        if output_dim != features:
            raise ValueError(
                f"{type(self).__name__}: output_dim is {output_dim}, wanted {features}"
            )
        self.batch_normalization: Any = bool(batch_normalization)
        self.activation = activation_layer is not None
        self.conv1 = nn.Conv2d(input_channels, 64, 7, stride=2, padding=3, bias=bias)
        self.weighted_layer_names = ["conv1"]
        if batch_normalization:
            self.conv_bn1 = nn.BatchNorm2d(64)
        if activation_layer is not None:
            self.conv_activation1 = activation_layer()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        before = 64
        for stage, number, channels in zip(STAGES, self.numbers, (64, 128, 256, 512), strict=True):
            blocks = []
            for i in range(number):
                stride = 2 if i == 0 and stage != "conv2x" else 1
                sizes = (before, channels, stride, self.large)
                block = ResNetBlock(
                    f"{stage}/{i}", sizes, activation_layer, bool(batch_normalization), bias
                )
                blocks.append(block)
                self.weighted_layer_names += block.weighted_layer_names
                before = channels * (4 if self.large else 1)
            self.add_module(stage, nn.Sequential(*blocks))
        self.avepool = nn.AdaptiveAvgPool2d((1, 1))
        if pretrained_weights is not None:
            load_torchvision(self, self.depth, pretrained_weights)

    def blocks(self) -> Iterator[ResNetBlock]:
        """The blocks of all stages in their order."""
        for stage in STAGES:
            yield from self.get_submodule(stage).children()  # type: ignore[misc]

    def forward(
        self, input: Tensor, stage: str | None = None, task_id: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, C, H, W] -> (features [N, output_dim], by layer what is behind its activation).

        ``stage`` and ``task_id`` are for other backbones.
        """
        x = self.conv1(input)
        if self.batch_normalization:
            x = self.conv_bn1(x)
        if self.activation:
            x = self.conv_activation1(x)
        activations = {"conv1": x}
        x = self.maxpool(x)
        for block in self.blocks():
            x = block(x, activations)
        return self.avepool(x).flatten(1), activations


class ResNet18(ResNetBase):
    """ResNet-18; arguments as for ResNetBase."""

    depth, large, numbers = 18, False, (2, 2, 2, 2)


class ResNet34(ResNetBase):
    """ResNet-34; arguments as for ResNetBase."""

    depth, large, numbers = 34, False, (3, 4, 6, 3)


class ResNet50(ResNetBase):
    """ResNet-50; arguments as for ResNetBase."""

    depth, large, numbers = 50, True, (3, 4, 6, 3)


class ResNet101(ResNetBase):
    """ResNet-101; arguments as for ResNetBase."""

    depth, large, numbers = 101, True, (3, 4, 23, 3)


class ResNet152(ResNetBase):
    """ResNet-152; arguments as for ResNetBase."""

    depth, large, numbers = 152, True, (3, 8, 36, 3)


CLResNet18, CLResNet34, CLResNet50 = ResNet18, ResNet34, ResNet50
CLResNet101, CLResNet152 = ResNet101, ResNet152
