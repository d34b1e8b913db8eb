"""Linear and convolution layers whose output units carry a mask a task (HAT, Serra et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import backends
from maskcl.nn.tasks.activations import check_activation
from maskcl.nn.tasks.narrow import Narrow
from maskcl.nn.tasks.state import Masked
from maskcl.ops import masked_conv, masked_linear, open_conv
from maskcl.reference.masked_forward import activate

_FEWEST_CHANNELS = 16


class HATLinear(Masked, nn.Linear):
    """``act(x W^T + b) * mask``, the mask fused into the product's epilogue.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``.
        activation: what comes between the product and the mask (HAT section 2.2 masks the
            activated output): identity, relu, gelu, gelu_tanh, silu, tanh, sigmoid or leaky_relu.
        negative_slope: of leaky_relu.
        device, dtype: of the parameters.

    Shape: [.., in_features] -> [.., out_features].

    Raises:
        ValueError: the activation is unknown.
        RuntimeError: (forward) it belongs to no network, or no task is active.
    """

    _network = "HATNetwork"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_activation("HATLinear", activation)
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = activation
        self.negative_slope = negative_slope

    def is_shared(self) -> bool:
        """Unless the active task was finished before the layer grew."""
        return self._narrow() is None

    def unmasked(self, input: Tensor) -> Tensor:
        """x W^T + b, as the active task sees them."""
        weight, bias = self.weight, self.bias
        if (narrow := self._narrow()) is not None:
            weight, bias = _narrowed(narrow, weight, bias)
        return F.linear(input, weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        """act(x W^T + b) * mask."""
        mask, weight, bias = self._mask(), self.weight, self.bias
        if (narrow := self._narrow()) is not None:
            weight, bias = _narrowed(narrow, weight, bias)
        if mask is None:
            return activate(F.linear(input, weight, bias), self.activation, self.negative_slope)
        return masked_linear(
            input,
            weight,
            mask,
            bias,
            activation=self.activation,
            negative_slope=self.negative_slope,
            save=self._save,
        )


def _narrowed(narrow: Narrow, weight: Tensor, bias: Any) -> tuple[Tensor, Any]:
    """What a task sees of a layer that was widened after it was finished."""
    return narrow.weight(weight), None if bias is None else narrow.channels(bias)


def has_plain_window(layer: Any) -> bool:
    """Whether ``layer``, an ``nn.Conv1d``, 2d or 3d, is what the ops take.

    That is: of images, with zeros around them, all channels to all.
    """
    zeros = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Conv2d) and zeros and layer.groups == 1


class _HATConv(Masked):
    """What the convolutions share; ``_space`` is their number of spatial dimensions."""

    _network = "HATNetwork"
    _space: int
    # What nn.ConvNd, the other base of each subclass, brings.
    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __init__(
        self, *args: Any, activation: str = "identity", negative_slope: float = 0.01, **options: Any
    ) -> None:
        check_activation(type(self).__name__, activation)
        super().__init__(*args, **options)
        self.activation = activation
        self.negative_slope = negative_slope

    def unmasked(self, input: Tensor) -> Tensor:
        """conv(x), as the active task sees it."""
        weight, bias = self.weight, self.bias
        if (narrow := self._narrow()) is not None:
            weight, bias = _narrowed(narrow, weight, bias)
        return self._conv_forward(input, weight, bias)

    def forward(self, input: Tensor) -> Tensor:
        """act(conv(x)) * mask, the mask along the channels."""
        weight, bias = self.weight, self.bias
        if (narrow := self._narrow()) is not None:
            weight, bias = _narrowed(narrow, weight, bias)
        if has_plain_window(self) and input.dim() == 4:
            mask = self._mask()
            if mask is not None or self._pays_to_look(input, weight):
                return self._masked_images(input, weight, bias, mask)
        y = self._conv_forward(input, weight, bias)
        return self._finish(y, y.dim() - 1 - self._space)

    def _masked_images(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        # The convolution adds the bias itself: its kernels do so for nothing.
        window = self.stride, self.padding, self.dilation
        if mask is None:
            y = open_conv(x, weight, bias, *window)
            return activate(y, self.activation, self.negative_slope)
        return masked_conv(
            x,
            weight,
            mask,
            bias,
            *window,
            activation=self.activation,
            negative_slope=self.negative_slope,
            save=self._save,
        )

    def _pays_to_look(self, x: Tensor, weight: Tensor) -> bool:
        """Whether to look for closed channels of x, without a mask of one's own.

        In training on a CPU, of images as ``nn.Conv2d`` takes and leaves them; a window of one
        pixel has too little to do.
        """
        if x.device.type != "cpu" or x.dtype is not torch.float32 or not x.is_contiguous():
            return False
        if not weight.is_contiguous() or type(x) is not Tensor:  # or traced
            return False
        outs, ins, *window = weight.shape
        if min(outs, ins) < _FEWEST_CHANNELS or math.prod(window) == 1:
            return False
        if self._active().scale is None or not torch.is_grad_enabled():
            return False
        return backends.choose("open_conv", "cpu", torch.float32) == "cpp"


class HATConv1d(_HATConv, nn.Conv1d):
    """``act(conv1d(x)) * mask`` along the channels.

    Takes ``nn.Conv1d``'s arguments and HATLinear's ``activation`` and ``negative_slope``.
    """

    _space = 1


class HATConv2d(_HATConv, nn.Conv2d):
    """``act(conv2d(x)) * mask`` along the channels.

    Takes ``nn.Conv2d``'s arguments and HATLinear's ``activation`` and ``negative_slope``.
    """

    _space = 2


class HATConv3d(_HATConv, nn.Conv3d):
    """``act(conv3d(x)) * mask`` along the channels.

    Takes ``nn.Conv3d``'s arguments and HATLinear's ``activation`` and ``negative_slope``.
    """

    _space = 3
