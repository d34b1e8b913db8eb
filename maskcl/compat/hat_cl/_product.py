"""A layer's product that waits for the mask behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.ops import masked_conv, masked_linear, open_conv


@dataclass
class LinearProduct:
    """x W^T + b that waits, so that the mask behind it can be its epilogue."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its output's."""
        return (*self.x.shape[:-1], self.weight.shape[0])

    def plain(self) -> Tensor:
        """Without a mask."""
        return F.linear(self.x, self.weight, self.bias)

    def masked(self, mask: Tensor, activation: str) -> Tensor:
        """act(x W^T + b) times the mask."""
        return masked_linear(self.x, self.weight, mask, self.bias, activation=activation)


@dataclass
class ConvProduct:
    """conv2d(x) + b that waits likewise; ``window`` is stride, padding and dilation."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    window: tuple[Any, Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Its output's."""
        sizes = zip(self.x.shape[2:], self.weight.shape[2:], *self.window, strict=True)
        space = [(x + 2 * p - d * (k - 1) - 1) // s + 1 for x, k, s, p, d in sizes]
        return (self.x.shape[0], self.weight.shape[0], *space)

    def plain(self) -> Tensor:
        """Without a mask."""
        return open_conv(self.x, self.weight, self.bias, *self.window)

    def masked(self, mask: Tensor, activation: str) -> Tensor:
        """act(conv2d(x) + b) times the mask along the channels."""
        window = self.window
        return masked_conv(self.x, self.weight, mask, self.bias, *window, activation=activation)


Product = LinearProduct | ConvProduct


def waits(x: Tensor, task_id: int | None) -> bool:
    """Whether a product may wait for its mask: only where it then computes under the same rules."""
    training = task_id is not None and torch.is_grad_enabled()
    return training and not torch.is_autocast_enabled(x.device.type)
