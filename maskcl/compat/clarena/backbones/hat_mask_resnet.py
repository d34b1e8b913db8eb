"""Residual networks with HAT's masks on maskcl's fused ops, with CLArena's names of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.fused import check_activation_layer, masked_layer
from maskcl.compat.clarena.backbones.handed_masks import Masks
from maskcl.compat.clarena.backbones.hat_mask_resnet_blocks import (
    HATMaskResNetBlock,
    HATMaskResNetBlockLarge,
    HATMaskResNetBlockSmall,
)
from maskcl.compat.clarena.backbones.masked import HATMaskBackbone
from maskcl.compat.clarena.backbones.norms import NormsByTask, check_mode
from maskcl.compat.clarena.backbones.plain_resnet import ResNetBase
from maskcl.compat.clarena.backbones.resnet_blocks import building_blocks, load_torchvision
from maskcl.compat.clarena.spelling import MASK, is_at, older_order, spellings

__all__ = [
    "HATMaskResNet101",
    "HATMaskResNet152",
    "HATMaskResNet18",
    "HATMaskResNet34",
    "HATMaskResNet50",
    "HATMaskResNetBase",
    "HATMaskResNetBlockLarge",
    "HATMaskResNetBlockSmall",
]

_OLDER = (
    "input_channels building_block_type building_block_nums"
    " building_block_preceding_output_channels building_block_input_channels output_dim gate"
    " activation_layer bias"
)


class HATMaskResNetBase(HATMaskBackbone, ResNetBase):
    """A ResNet whose convolutions' channels are masked.

    Positional arguments may be in the order of versions before 1.1 too: a bool in
    batch_normalization's place is the bias.

    Args:
        input_channels: as for ResNetBase.
        building_block_type: HATMaskResNetBlockSmall, HATMaskResNetBlockLarge, or one of your own.
        building_block_nums: as for ResNetBase.
        building_block_preceding_output_channels: as for ResNetBase.
        building_block_input_channels: as for ResNetBase.
        output_dim: as for ResNetBase.
        gate: "sigmoid".
        activation_layer: class of the activations, without parameters, or None.
        batch_normalization: None, "shared" by all tasks (they then forget) or "independent", one
            a task (also ``batch_normalisation``).
        bias: of the convolutions.
        kwargs: for the next class of a multiple inheritance.

    Attributes:
        conv_bn1s: where each task has its own BatchNorms, task ID as a string -> the stem's.

    Raises:
        ValueError: gate, activation_layer, batch_normalization or output_dim is not as above.
    """

    @older_order(_OLDER, is_at(8, bool))
    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        input_channels: int,
        building_block_type: Callable[..., Any],
        building_block_nums: Sequence[int],
        building_block_preceding_output_channels: Sequence[int],
        building_block_input_channels: Sequence[int],
        output_dim: int,
        gate: str,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: str | None = None,
        bias: bool = False,
        **kwargs: Any,
    ) -> None:
        check_mode(type(self).__name__, batch_normalization)
        check_activation_layer(type(self).__name__, activation_layer)
        # The blocks are made before the masks are registered, and need both.
        self.gate, self.batch_normalization_mode = gate, batch_normalization
        super().__init__(
            output_dim=output_dim,
            gate=gate,
            input_channels=input_channels,
            building_block_type=building_block_type,
            building_block_nums=building_block_nums,
            building_block_preceding_output_channels=building_block_preceding_output_channels,
            building_block_input_channels=building_block_input_channels,
            activation_layer=activation_layer,
            batch_normalization=batch_normalization is not None,
            bias=bias,
            **kwargs,
        )
        HATMaskBackbone.sanity_check(self)
        self.batch_normalization = batch_normalization
        self.update_multiple_blocks_task_embedding()
        self.embed_units()
        if batch_normalization == "independent":
            self.conv_bn1s = NormsByTask(self.conv_bn1)

    def block_options(self, batch_normalization: bool) -> dict[str, Any]:
        """Arguments of every block besides activation_layer and bias."""
        return {"gate": self.gate, "batch_normalization": self.batch_normalization_mode}

    def update_multiple_blocks_task_embedding(self) -> None:
        """Take the blocks' embeddings among the network's own; they are the same modules then."""
        for block in self.blocks():
            self.task_embedding_t.update(block.task_embedding_t)

    @property
    def original_conv_bn1_state_dict(self) -> dict[str, Any]:
        """What each task's stem's BatchNorm begins with, where each task has its own."""
        return self.conv_bn1s.start

    @older_order("input stage s_max batch_idx num_batches test_mask", is_at(5, MASK))
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
        scale = {"s_max": s_max, "batch_idx": batch_idx, "num_batches": num_batches}
        options: dict[str, Any] = {"stage": stage, **scale, "test_task_id": test_task_id}
        mask = self.get_mask(**options, test_mask=test_mask)
        norm, task = getattr(self, "conv_bn1", None), self.norm_task(stage, test_task_id)
        if task is not None:
            norm = self.conv_bn1s.of(task)
        activation = getattr(self, "conv_activation1", None)
        x = masked_layer(self.conv1, input, mask["conv1"], activation, norm)
        activations = {"conv1": x}
        x = self.maxpool(x)
        for block in self.blocks():
            # A block of one's own asks for its mask itself.
            known = getattr(type(block), "forward", None) is HATMaskResNetBlock.forward
            x, _, inner = block(x, **options, **({"mask": mask} if known else {}))
            activations.update(inner)
        return self.avepool(x).flatten(1), mask, activations


class HATMaskSizedResNet(HATMaskResNetBase):
    """A ResNet of one of the usual depths with masks.

    Args:
        input_channels: as for ResNetBase.
        output_dim: 512, or 2048 from ResNet-50 on: what the architecture has.
        gate: "sigmoid".
        activation_layer: as for HATMaskResNetBase.
        batch_normalization: as for HATMaskResNetBase.
        bias: of the convolutions.
        pretrained_weights: name of torchvision's weights of the network of the same depth, or None.
        kwargs: for the next class of a multiple inheritance.

    Raises:
        ValueError: gate, activation_layer, batch_normalization or output_dim is not as above.
    """

    depth: ClassVar[int]

    @older_order(
        "input_channels output_dim gate activation_layer bias pretrained_weights", is_at(4, bool)
    )
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
        super().__init__(
            input_channels=input_channels,
            output_dim=output_dim,
            gate=gate,
            activation_layer=activation_layer,
            batch_normalization=batch_normalization,
            bias=bias,
            **building_blocks(self.depth, HATMaskResNetBlockSmall, HATMaskResNetBlockLarge),
            **kwargs,
        )
        if pretrained_weights is not None:
            load_torchvision(self, self.depth, pretrained_weights)
            for norms in self.norms_by_task():
                norms.begin_here()


class HATMaskResNet18(HATMaskSizedResNet):
    """ResNet-18 with masks; arguments as for HATMaskSizedResNet."""

    depth = 18


class HATMaskResNet34(HATMaskSizedResNet):
    """ResNet-34 with masks; arguments as for HATMaskSizedResNet."""

    depth = 34


class HATMaskResNet50(HATMaskSizedResNet):
    """ResNet-50 with masks; arguments as for HATMaskSizedResNet."""

    depth = 50


class HATMaskResNet101(HATMaskSizedResNet):
    """ResNet-101 with masks; arguments as for HATMaskSizedResNet."""

    depth = 101


class HATMaskResNet152(HATMaskSizedResNet):
    """ResNet-152 with masks; arguments as for HATMaskSizedResNet."""

    depth = 152
