"""The blocks of residual networks, with or without masks, and torchvision's weights for them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.fused import masked_layer
from maskcl.compat.clarena.backbones.norms import NormsByTask

STAGES = ("conv2x", "conv3x", "conv4x", "conv5x")
_Sizes = tuple[int, int, int, bool]


class ResNetBlock(nn.Module):
    """Convolutions ``conv1``, ``conv2`` (and ``conv3``) with a shortcut around them.

    Two of 3x3, the last with the stride, or, large, 1x1, 3x3 with the stride and 1x1 to 4 times the
    channels. A shortcut that changes sizes is a 1x1 convolution ``identity_downsample``.

    Args:
        name: of the block, as in ``conv2x/0``.
        sizes: channels of the input, channels, stride, large.
        activation_layer: class of the activations, or None.
        batch_normalization: BatchNorm behind the convolutions.
        bias: of the convolutions.
    """

    identity_downsample: nn.Conv2d | None

    def __init__(
        self,
        name: str,
        sizes: _Sizes,
        activation_layer: Callable[[], nn.Module] | None,
        batch_normalization: bool,
        bias: bool,
    ) -> None:
        super().__init__()
        before, channels, stride, large = sizes
        after = channels * (4 if large else 1)
        shapes = [(before, channels, 3, 1), (channels, channels, 3, stride)]
        if large:
            shapes = [(before, channels, 1, 1), (channels, channels, 3, stride)]
            shapes.append((channels, after, 1, 1))
        self.name = name
        self.count = len(shapes)
        self.weighted_layer_names = [f"{name}/conv{i + 1}" for i in range(self.count)]
        for i, (inputs, outputs, kernel, step) in enumerate(shapes, 1):
            conv = nn.Conv2d(inputs, outputs, kernel, step, padding=kernel // 2, bias=bias)
            self.add_module(f"conv{i}", conv)
            if batch_normalization:
                self.add_module(f"conv_bn{i}", nn.BatchNorm2d(outputs))
            if activation_layer is not None:
                self.add_module(f"conv_activation{i}", activation_layer())
        if stride == 1 and before == after:
            self.identity_downsample = None
        else:
            self.identity_downsample = nn.Conv2d(before, after, 1, stride, bias=False)

    def keep_norms_by_task(self) -> None:
        """Let each task have its own BatchNorms, as ``conv_bn1s`` and so on."""
        for i in range(1, self.count + 1):
            self.add_module(f"conv_bn{i}s", NormsByTask(getattr(self, f"conv_bn{i}")))

    def forward(
        self,
        input: Tensor,
        activations: dict[str, Tensor],
        mask: dict[str, Tensor] | None = None,
        task_id: int | None = None,
    ) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W'].

        Args:
            input: what the block before hands on.
            activations: is given what each convolution hands on.
            mask: layer -> [channels], or None.
            task_id: of the task whose stored BatchNorms count; None: those in training.
        """
        down = self.identity_downsample
        shortcut = input if down is None else down(input)
        x = input
        for i, name in enumerate(self.weighted_layer_names, 1):
            conv: Any = getattr(self, f"conv{i}")
            activation: Any = getattr(self, f"conv_activation{i}", None)
            norm: Any = getattr(self, f"conv_bn{i}", None)
            if norm is not None and task_id is not None:
                norm = getattr(self, f"conv_bn{i}s").of(task_id)
            added = shortcut if i == self.count else None
            if mask is not None:
                x = masked_layer(conv, x, mask[name], activation, norm, added)
            else:
                x = conv(x)
                x = x if norm is None else norm(x)
                x = x if added is None else x + added
                x = x if activation is None else activation(x)
            activations[name] = x
        return x


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
