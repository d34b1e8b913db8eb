"""Residual networks with HAT's masks on maskcl's fused ops, with CLArena's names of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.fused import check_activation_layer, masked_layer
from maskcl.compat.clarena.backbones.masked import HATMaskBackbone
from maskcl.compat.clarena.backbones.norms import NormsByTask, check_mode
from maskcl.compat.clarena.backbones.protection import Part
from maskcl.compat.clarena.backbones.resnet import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNetBase,
)
from maskcl.compat.clarena.backbones.units import Masks
from maskcl.compat.clarena.spelling import spellings

__all__ = [
    "HATMaskResNet101",
    "HATMaskResNet152",
    "HATMaskResNet18",
    "HATMaskResNet34",
    "HATMaskResNet50",
    "HATMaskResNetBase",
]


class HATMaskResNetBase(HATMaskBackbone, ResNetBase):
    """A ResNet whose convolutions' channels are masked.

    A block's last mask comes behind the sum with the shortcut, so that the block's output has that
    mask alone, and the next block's shortcut is 0 in closed channels.

    Args:
        input_channels: as for ResNetBase.
        output_dim: as for ResNetBase.
        gate: "sigmoid".
        activation_layer: class of the activations, without parameters, or None.
        batch_normalization: None, "shared" by all tasks (they then forget) or "independent", one
            a task (also ``batch_normalisation``).
        bias: of the convolutions.
        pretrained_weights: as for ResNetBase.
        kwargs: for the next class of a multiple inheritance.

    Raises:
        ValueError: gate, activation_layer, batch_normalization or output_dim is not as above.
    """

    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        input_channels: int,
        output_dim: int,
        gate: str,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: str | None = None,
        bias: bool = False,
        pretrained_weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_mode(type(self).__name__, batch_normalization)
        check_activation_layer(type(self).__name__, activation_layer)
        super().__init__(
            output_dim=output_dim,
            gate=gate,
            input_channels=input_channels,
            activation_layer=activation_layer,
            batch_normalization=batch_normalization is not None,
            bias=bias,
            pretrained_weights=pretrained_weights,
            **kwargs,
        )
        self.batch_normalization = batch_normalization
        self._embed_units()
        if batch_normalization == "independent":
            self.conv_bn1s = NormsByTask(self.conv_bn1)
            for block in self.blocks():
                block.keep_norms_by_task()

    def protected_layers(self) -> Iterator[Part]:
        """The weighted layers, and the shortcuts' convolutions, which lie between masks too."""
        yield from super().protected_layers()
        for block in self.blocks():
            if block.identity_downsample is not None:
                first, last = block.weighted_layer_names[0], block.weighted_layer_names[-1]
                before = self.preceding_layer_name(first)
                name = f"{block.name}/identity_downsample"
                yield name, block.identity_downsample, last, before

    @spellings(task_id="test_task_id")
    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        stage: str,
        s_max: float | None = None,
        batch_idx: int | None = None,
        num_batches: int | None = None,
        test_task_id: int | None = None,
        test_mask: Masks | None = None,
    ) -> tuple[Tensor, Masks, dict[str, Tensor]]:
        """[N, C, H, W] -> (features [N, output_dim], masks, by layer its masked channels).

        Arguments behind ``input`` are `get_mask`'s, and so are the errors.
        """
        mask = self.get_mask(stage, s_max, batch_idx, num_batches, test_task_id, test_mask)
        norm_task = self._norm_task(stage, test_task_id)
        norm = getattr(self, "conv_bn1", None)
        if norm_task is not None:
            norm = self.conv_bn1s.of(norm_task)
        activation = getattr(self, "conv_activation1", None)
        x = masked_layer(self.conv1, input, mask["conv1"], activation, norm)
        activations = {"conv1": x}
        x = self.maxpool(x)
        for block in self.blocks():
            x = block(x, activations, mask, norm_task)
        return self.avepool(x).flatten(1), mask, activations


class HATMaskResNet18(HATMaskResNetBase, ResNet18):
    """ResNet-18 with masks; arguments as for HATMaskResNetBase."""


class HATMaskResNet34(HATMaskResNetBase, ResNet34):
    """ResNet-34 with masks; arguments as for HATMaskResNetBase."""


class HATMaskResNet50(HATMaskResNetBase, ResNet50):
    """ResNet-50 with masks; arguments as for HATMaskResNetBase."""


class HATMaskResNet101(HATMaskResNetBase, ResNet101):
    """ResNet-101 with masks; arguments as for HATMaskResNetBase."""


class HATMaskResNet152(HATMaskResNetBase, ResNet152):
    """ResNet-152 with masks; arguments as for HATMaskResNetBase."""
