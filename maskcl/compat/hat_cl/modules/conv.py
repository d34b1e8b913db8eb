"""HAT's convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from maskcl.compat.hat_cl._waiting_product import ConvProduct
from maskcl.compat.hat_cl.modules._masked_layer import HATMaskedModuleABC
from maskcl.compat.hat_cl.modules.utils import register_mapping
from maskcl.compat.hat_cl.types_ import HATConfig
from maskcl.nn.hat.layers import has_plain_window

_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")

# Products with fewer multiplications than about this many are no faster in channels_last, and keep
# the order of memory in which nn.Conv2d adds up: there outputs in training have its very bits.
SMALL_PRODUCT = 2**20


class _HATConvNd(HATMaskedModuleABC):
    """What the convolutions share."""

    in_channels: int
    out_channels: int
    stride: Any
    padding: Any
    dilation: Any
    # What nn.ConvNd, the other base of each subclass, brings.
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        hat_config: HATConfig,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features=out_channels,
            hat_config=hat_config,
            device=device,
            dtype=dtype,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
        )

    def arrange(self, x: Tensor) -> Tensor:
        """Images on a CPU in channels_last: pooling is faster, closed channels are left out.

        Not those of a small product, where that is no faster (`SMALL_PRODUCT`).
        """
        if x.dim() != 4 or x.device.type != "cpu" or self._products(x) < SMALL_PRODUCT:
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def _products(self, x: Tensor) -> int:
        """About how many multiplications the convolution of images takes."""
        places = x.shape[0] * math.prod(
            size // step for size, step in zip(x.shape[2:], self.stride, strict=True)
        )
        return places * self.weight.numel()

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution."""
        return self._conv_forward(x, weight, bias)

    def deferred(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> ConvProduct | None:
        """The convolution of images, whose mask will be applied in place on it."""
        if x.dim() != 4 or not has_plain_window(self):
            return None
        return ConvProduct(x, weight, bias, (self.stride, self.padding, self.dilation))

    def to_base_module(self, task_id: int | None = None, **kwargs: Any) -> nn.Sequential:
        """An ordinary convolution and the task's AttentionMasker (an Identity for no task).

        Args:
            task_id: which task.
            kwargs: of `HATMasker.to_base_module`.
        """
        conv = self.base_class(
            self.in_channels,
            self.out_channels,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
            **{name: getattr(self, name) for name in _OPTIONS},
        )
        return self._with_masker(conv, task_id, kwargs)

    @classmethod
    def from_base_module(cls, base_module: _ConvNd, **kwargs: Any) -> _HATConvNd:
        """The same weights under masks.

        Args:
            base_module: an ordinary convolution.
            kwargs: of HATConfig.
        """
        layer = cls(
            base_module.in_channels,
            base_module.out_channels,
            hat_config=HATConfig(**kwargs),
            bias=base_module.bias is not None,
            device=base_module.weight.device,
            dtype=base_module.weight.dtype,
            **{name: getattr(base_module, name) for name in _OPTIONS},
        )
        layer.load_from_base_module(base_module)
        return layer


@register_mapping
class HATConv1d(_HATConvNd, nn.Conv1d):  # type: ignore[misc]
    """``nn.Conv1d`` whose channels carry one mask a task.

    Takes ``nn.Conv1d``'s arguments, and hat_config behind kernel_size.
    """

    base_class = nn.Conv1d
    channel_dim = -2


@register_mapping
class HATConv2d(_HATConvNd, nn.Conv2d):  # type: ignore[misc]
    """``nn.Conv2d`` whose channels carry one mask a task.

    Takes ``nn.Conv2d``'s arguments, and hat_config behind kernel_size.
    """

    base_class = nn.Conv2d
    channel_dim = -3


@register_mapping
class HATConv3d(_HATConvNd, nn.Conv3d):  # type: ignore[misc]
    """``nn.Conv3d`` whose channels carry one mask a task.

    Takes ``nn.Conv3d``'s arguments, and hat_config behind kernel_size.
    """

    base_class = nn.Conv3d
    channel_dim = -4
