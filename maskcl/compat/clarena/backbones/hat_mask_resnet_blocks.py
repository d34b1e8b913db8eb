"""The blocks of residual networks with HAT's masks; each is a backbone of its own too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.fused import check_activation_layer
from maskcl.compat.clarena.backbones.handed_masks import Masks
from maskcl.compat.clarena.backbones.masked import HATMaskBackbone
from maskcl.compat.clarena.backbones.norms import NormsByTask, check_mode
from maskcl.compat.clarena.backbones.protection import Part
from maskcl.compat.clarena.backbones.resnet_blocks import (
    ResNetBlock,
    ResNetBlockLarge,
    ResNetBlockSmall,
)
from maskcl.compat.clarena.backbones.units import MaskedUnits
from maskcl.compat.clarena.spelling import MASK, is_at, older_order, spellings

__all__ = ["HATMaskResNetBlock", "HATMaskResNetBlockLarge", "HATMaskResNetBlockSmall"]

_OLDER = (
    "outer_layer_name block_idx preceding_output_channels input_channels overall_stride gate"
    " activation_layer bias"
)


class HATMaskResNetBlock(HATMaskBackbone, ResNetBlock):
    """A block whose convolutions' channels are masked.

    The last mask comes behind the sum with the shortcut, so that the block's output has that mask
    alone, and the next block's shortcut is 0 in closed channels. Positional arguments may be in the
    order of versions before 1.1 too: a bool in batch_normalization's place is the bias.

    Args:
        outer_layer_name: as for ResNetBlock.
        block_idx: as for ResNetBlock.
        preceding_output_channels: as for ResNetBlock.
        input_channels: as for ResNetBlock.
        overall_stride: as for ResNetBlock.
        gate: "sigmoid".
        activation_layer: class of the activations, without parameters, or None.
        batch_normalization: None, "shared" by all tasks (they then forget) or "independent", one
            a task (also ``batch_normalisation``).
        bias: of the convolutions.
        kwargs: for the next class of a multiple inheritance.

    Attributes:
        conv_bn1s: where each task has its own BatchNorms, task ID as a string -> the one behind
            the first convolution; ``conv_bn2s`` and so on of the others.

    Raises:
        ValueError: gate, activation_layer or batch_normalization is not as above.
    """

    @older_order(_OLDER, is_at(7, bool))
    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        outer_layer_name: str,
        block_idx: int,
        preceding_output_channels: int,
        input_channels: int,
        overall_stride: int,
        gate: str,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: str | None = None,
        bias: bool = False,
        **kwargs: Any,
    ) -> None:
        check_mode(type(self).__name__, batch_normalization)
        check_activation_layer(type(self).__name__, activation_layer)
        super().__init__(
            output_dim=None,
            gate=gate,
            outer_layer_name=outer_layer_name,
            block_idx=block_idx,
            preceding_output_channels=preceding_output_channels,
            input_channels=input_channels,
            overall_stride=overall_stride,
            activation_layer=activation_layer,
            batch_normalization=batch_normalization is not None,
            bias=bias,
            **kwargs,
        )
        HATMaskBackbone.sanity_check(self)
        self.batch_normalization = batch_normalization
        self.embed_units()
        if batch_normalization == "independent":
            for i, norm in enumerate(self.parts("conv_bn"), 1):
                self.add_module(f"conv_bn{i}s", NormsByTask(norm))

    def __getattr__(self, name: str) -> Any:
        # original_conv_bn1_state_dict and so on: what each task's BatchNorms begin with.
        if name.startswith("original_conv_bn") and name.endswith("_state_dict"):
            middle = name.removeprefix("original_").removesuffix("_state_dict")
            norms: Any = super().__getattr__(f"{middle}s")
            return norms.start
        return super().__getattr__(name)

    def shortcuts(self, whole: MaskedUnits) -> Iterator[Part]:
        """The shortcut's convolution, which lies between masks too."""
        first, last = self.weighted_layer_names[0], self.weighted_layer_names[-1]
        if self.identity_downsample is not None:
            before = whole.preceding_layer_name(first)
            yield f"{self.name}/identity_downsample", self.identity_downsample, last, before

    @spellings(task_id="test_task_id")
    def get_bn(self, stage: str, test_task_id: int | None) -> Any:
        """The BatchNorms at a stage: a task's own in tests where each has its own; None for none.

        Raises:
            ValueError: the task has none.
        """
        if self.batch_normalization is None:
            return None
        task = self.norm_task(stage, test_task_id)
        if task is None:
            return tuple(self.parts("conv_bn"))
        count = len(self.weighted_layer_names)
        return tuple(getattr(self, f"conv_bn{i + 1}s").of(task) for i in range(count))

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
        *,
        mask: Masks | None = None,
    ) -> tuple[Tensor, Masks, dict[str, Tensor]]:
        """[N, C, H, W] -> ([N, C', H', W'], masks, by layer its masked channels).

        Arguments behind ``input`` are `get_mask`'s, and so are the errors; ``mask`` is what that
        returns, where the network around the block has asked it.
        """
        if mask is None:
            mask = self.get_mask(stage, s_max, batch_idx, num_batches, test_task_id, test_mask)
        norms = self.get_bn(stage, test_task_id) or (None,) * len(self.weighted_layer_names)
        x, activations = self.compute(input, mask, norms)
        return x, mask, activations


class HATMaskResNetBlockSmall(HATMaskResNetBlock, ResNetBlockSmall):
    """Two convolutions of 3x3 with masks; arguments as for HATMaskResNetBlock."""


class HATMaskResNetBlockLarge(HATMaskResNetBlock, ResNetBlockLarge):
    """1x1, 3x3 and 1x1 convolutions with masks; arguments as for HATMaskResNetBlock."""
