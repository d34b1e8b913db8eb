"""Residual networks without masks, with CLArena's names of layers (He et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.plain import Backbone, CLBackbone
from maskcl.compat.clarena.backbones.resnet_blocks import (
    STAGES,
    ResNetBlockLarge,
    ResNetBlockSmall,
    building_blocks,
    load_torchvision,
)
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


def leaving(block: Any) -> int:
    """Channels that leave a block."""
    return block.get_layer_by_name(block.weighted_layer_names[-1]).out_channels


class ResNetBase(Backbone):
    """Stem ``conv1``, four stages ``conv2x`` to ``conv5x`` of blocks, and a mean over positions.

    Args:
        input_channels: of the images.
        building_block_type: class of the blocks.
        building_block_nums: blocks of each stage.
        building_block_preceding_output_channels: for each stage the channels that enter it.
        building_block_input_channels: for each stage those of its blocks' first convolutions.
        output_dim: channels that leave the last stage.
        activation_layer: class of the activations, or None.
        batch_normalization: BatchNorm behind the convolutions (also ``batch_normalisation``).
        bias: of the convolutions.
        kwargs: for the next class of a multiple inheritance.

    Raises:
        ValueError: output_dim is not as above.
    """

    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        input_channels: int,
        building_block_type: Callable[..., Any],
        building_block_nums: Sequence[int],
        building_block_preceding_output_channels: Sequence[int],
        building_block_input_channels: Sequence[int],
        output_dim: int,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: bool = True,
        bias: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_dim=output_dim, **kwargs)
        self.batch_normalization: Any = bool(batch_normalization)
        self.activation = activation_layer is not None
        self.conv1 = nn.Conv2d(input_channels, 64, 7, stride=2, padding=3, bias=bias)
        self.weighted_layer_names = ["conv1"]
        if batch_normalization:
            self.conv_bn1 = nn.BatchNorm2d(64)
        if activation_layer is not None:
            self.conv_activation1 = activation_layer()
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        options: dict[str, Any] = {"activation_layer": activation_layer, "bias": bias}
        options |= self.block_options(bool(batch_normalization))
        for stage, number, entering, width in zip(
            STAGES,
            building_block_nums,
            building_block_preceding_output_channels,
            building_block_input_channels,
            strict=True,
        ):
            blocks: list[Any] = []
            for i in range(number):
                block = building_block_type(
                    outer_layer_name=stage,
                    block_idx=i,
                    preceding_output_channels=leaving(blocks[-1]) if blocks else entering,
                    input_channels=width,
                    overall_stride=2 if i == 0 and stage != "conv2x" else 1,
                    **options,
                )
                self.weighted_layer_names += block.weighted_layer_names
                blocks.append(block)
            self.add_module(stage, nn.Sequential(*blocks))
        self.avepool = nn.AdaptiveAvgPool2d((1, 1))
        if output_dim != leaving(blocks[-1]):
            found = f"output_dim is {output_dim}, wanted {leaving(blocks[-1])}"
            raise ValueError(f"{type(self).__name__}: {found}")

    def block_options(self, batch_normalization: bool) -> dict[str, Any]:
        """Arguments of every block besides activation_layer and bias."""
        return {"batch_normalization": batch_normalization}

    def blocks(self) -> Iterator[Any]:
        """The blocks of all stages in their order."""
        for stage in STAGES:
            yield from self.get_submodule(stage).children()

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
            x, inner = block(x)
            activations.update(inner)
        return self.avepool(x).flatten(1), activations


class SizedResNet(ResNetBase):
    """A ResNet of one of the usual depths.

    Args:
        input_channels: as for ResNetBase.
        output_dim: 512, or 2048 from ResNet-50 on: what the architecture has.
        activation_layer: as for ResNetBase.
        batch_normalization: as for ResNetBase.
        bias: as for ResNetBase.
        pretrained_weights: name of torchvision's weights of the network of the same depth, or None.
        kwargs: for the next class of a multiple inheritance.

    Raises:
        ValueError: output_dim is not the architecture's.
    """

    depth: ClassVar[int]

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
        super().__init__(
            input_channels=input_channels,
            output_dim=output_dim,
            activation_layer=activation_layer,
            batch_normalization=batch_normalization,
            bias=bias,
            **building_blocks(self.depth, ResNetBlockSmall, ResNetBlockLarge),
            **kwargs,
        )
        if pretrained_weights is not None:
            load_torchvision(self, self.depth, pretrained_weights)


class ResNet18(SizedResNet):
    """ResNet-18; arguments as for SizedResNet."""

    depth = 18


class ResNet34(SizedResNet):
    """ResNet-34; arguments as for SizedResNet."""

    depth = 34


class ResNet50(SizedResNet):
    """ResNet-50; arguments as for SizedResNet."""

    depth = 50


class ResNet101(SizedResNet):
    """ResNet-101; arguments as for SizedResNet."""

    depth = 101


class ResNet152(SizedResNet):
    """ResNet-152; arguments as for SizedResNet."""

    depth = 152


CLBackbone.register(ResNetBase)
CLResNet18, CLResNet34, CLResNet50 = ResNet18, ResNet34, ResNet50
CLResNet101, CLResNet152 = ResNet101, ResNet152
