"""The blocks of residual networks, and torchvision's weights for the networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.fused import masked_layer
from maskcl.compat.clarena.backbones.plain import Backbone
from maskcl.compat.clarena.spelling import spellings

STAGES = ("conv2x", "conv3x", "conv4x", "conv5x")
_PLACES = ("1st", "2nd", "3rd")
_Shape = tuple[int, int, int, int]


class ResNetBlock(Backbone):
    """Convolutions ``conv1``, ``conv2`` (and ``conv3``) with a shortcut around them.

    A shortcut that changes sizes is a 1x1 convolution ``identity_downsample``.

    Args:
        outer_layer_name: of the blocks that this one is among, as in "conv2x".
        block_idx: its number there, from 0.
        preceding_output_channels: of its input.
        input_channels: of its first convolution.
        overall_stride: from its input to its output.
        activation_layer: class of the activations, or None.
        batch_normalization: BatchNorm behind the convolutions (also ``batch_normalisation``).
        bias: of the convolutions.
        output_dim: for the next class of a multiple inheritance.
        kwargs: for the next class of a multiple inheritance.

    Attributes:
        full_1st_layer_name: of its first convolution, as in "conv2x/0/conv1"; ``full_2nd_..`` and,
            where there is one, ``full_3rd_layer_name`` of the others.
    """

    identity_downsample: nn.Conv2d | None

    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        outer_layer_name: str,
        block_idx: int,
        preceding_output_channels: int,
        input_channels: int,
        overall_stride: int,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: bool = True,
        bias: bool = False,
        output_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_dim=output_dim, **kwargs)
        self.batch_normalization: Any = bool(batch_normalization)
        self.activation = activation_layer is not None
        self.name = f"{outer_layer_name}/{block_idx}"
        before, stride = preceding_output_channels, overall_stride
        shapes = self.shapes(before, input_channels, stride)
        for i, (inputs, outputs, kernel, step) in enumerate(shapes, 1):
            conv = nn.Conv2d(inputs, outputs, kernel, step, padding=kernel // 2, bias=bias)
            self.add_module(f"conv{i}", conv)
            self.weighted_layer_names.append(f"{self.name}/conv{i}")
            setattr(self, f"full_{_PLACES[i - 1]}_layer_name", self.weighted_layer_names[-1])
            if batch_normalization:
                self.add_module(f"conv_bn{i}", nn.BatchNorm2d(outputs))
            if activation_layer is not None:
                self.add_module(f"conv_activation{i}", activation_layer())
        after = shapes[-1][1]
        changes = stride != 1 or before != after
        down = nn.Conv2d(before, after, 1, stride, bias=False) if changes else None
        self.identity_downsample = down

    @staticmethod
    def shapes(before: int, channels: int, stride: int) -> list[_Shape]:
        """Of each convolution: channels in and out, size of the kernel, stride."""
        raise NotImplementedError

    def parts(self, name: str) -> list[Any]:
        """The modules ``{name}1``, ``{name}2`` (and ``{name}3``); None for one that is missing."""
        return [getattr(self, f"{name}{i + 1}", None) for i in range(len(self.shapes(1, 1, 1)))]

    def forward(self, input: Tensor) -> Any:  # type: ignore[override]
        """[N, C, H, W] -> ([N, C', H', W'], by layer what it hands on)."""
        return self.compute(input, None, self.parts("conv_bn"))

    def compute(
        self, input: Tensor, mask: Mapping[str, Tensor] | None, norms: Sequence[Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As ``forward``.

        Args:
            input: [N, C, H, W], what the block before hands on.
            mask: layer -> [channels], or None.
            norms: of the convolutions; None for none.
        """
        down = self.identity_downsample
        shortcut = input if down is None else down(input)
        x, activations, last = input, {}, self.weighted_layer_names[-1]
        layers = zip(
            self.weighted_layer_names, self.parts("conv"), norms, self.parts("conv_activation")
        )
        for name, conv, norm, activation in layers:
            added = shortcut if name == last else None
            if mask is not None:
                x = masked_layer(conv, x, mask[name], activation, norm, added)
            else:
                x = conv(x)
                x = x if norm is None else norm(x)
                x = x if added is None else x + added
                x = x if activation is None else activation(x)
            activations[name] = x
        return x, activations


class ResNetBlockSmall(ResNetBlock):
    """Two convolutions of 3x3, the last with the stride; arguments as for ResNetBlock."""

    @staticmethod
    def shapes(before: int, channels: int, stride: int) -> list[_Shape]:
        """Of each convolution: channels in and out, size of the kernel, stride."""
        return [(before, channels, 3, 1), (channels, channels, 3, stride)]


class ResNetBlockLarge(ResNetBlock):
    """1x1, 3x3 with the stride, and 1x1 to 4 times the channels; arguments as for ResNetBlock."""

    @staticmethod
    def shapes(before: int, channels: int, stride: int) -> list[_Shape]:
        """Of each convolution: channels in and out, size of the kernel, stride."""
        middle = (channels, channels, 3, stride)
        return [(before, channels, 1, 1), middle, (channels, 4 * channels, 1, 1)]


SIZES: dict[int, tuple[bool, tuple[int, int, int, int]]] = {
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
"""Depth of a network -> whether its blocks are large, and how many each stage has."""


def building_blocks(depth: int, small: Any, large: Any) -> dict[str, Any]:
    """ResNetBase's arguments about blocks for a network of one of the usual depths.

    Args:
        depth: one of SIZES.
        small: class of the blocks of two convolutions.
        large: class of those of three.
    """
    is_large, numbers = SIZES[depth]
    return {
        "building_block_type": large if is_large else small,
        "building_block_nums": numbers,
        "building_block_preceding_output_channels": (
            (64, 256, 512, 1024) if is_large else (64, 64, 128, 256)
        ),
        "building_block_input_channels": (64, 128, 256, 512),
    }


def load_torchvision(model: nn.Module, depth: int, weights: str) -> None:
    """Give a network the weights of torchvision's of the same depth.

    What torchvision's has and this has not is left out: the shortcuts' BatchNorms, the last linear
    layer, and all BatchNorms of a network without.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        RuntimeError: a weight has another shape, as with other than three input channels.
    """
    models = importlib.import_module("torchvision.models")
    found = getattr(models, f"resnet{depth}")(weights=weights).state_dict()
    own = model.state_dict()
    renamed = {torchvision_name(key): value for key, value in found.items()}
    model.load_state_dict({k: v for k, v in renamed.items() if k in own}, strict=False)


def torchvision_name(key: str) -> str:
    """What a tensor of torchvision's ResNets is called here."""
    for number, stage in enumerate(STAGES, 1):
        key = key.replace(f"layer{number}.", f"{stage}.")
    return key.replace("bn", "conv_bn").replace("downsample.0", "identity_downsample")
