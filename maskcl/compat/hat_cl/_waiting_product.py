"""A layer's product that waits for the mask behind it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.ops import masked_activation, masked_conv, masked_linear, open_conv


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
    """conv2d(x) + b that waits likewise, also for a ReLU and max pooling behind the mask.

    Both commute with a mask that is not negative: relu(m z) = m relu(z), max(m z) = m max(z). So it
    comes last, where there are fewest elements, and pooling in front of the ReLU.

    Attributes:
        x, weight, bias: of the convolution.
        window: its stride, padding and dilation.
        activation: "identity" or "relu".
        pool: the pooling.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    window: tuple[Any, Any, Any]
    activation: str = "identity"
    pool: nn.MaxPool2d | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The convolution's."""
        sizes = zip(self.x.shape[2:], self.weight.shape[2:], *self.window, strict=True)
        space = [(x + 2 * p - d * (k - 1) - 1) // s + 1 for x, k, s, p, d in sizes]
        return (self.x.shape[0], self.weight.shape[0], *space)

    def then(self, module: nn.Module) -> ConvProduct | None:
        """The same with ``module`` behind it; None where that has to be computed by itself."""
        if type(module) is nn.ReLU:
            return replace(self, activation="relu")
        if type(module) is nn.MaxPool2d and self.pool is None and not module.return_indices:
            return replace(self, pool=module)
        return None

    def plain(self) -> Tensor:
        """The convolution without a mask and what is behind it."""
        return open_conv(self.x, self.weight, self.bias, *self.window)

    def masked(self, mask: Tensor, activation: str) -> Tensor:
        """What waits, and then the activation, under the mask along the channels."""
        activation = self.activation if activation == "identity" else activation
        if self.pool is None:
            window = self.window
            return masked_conv(self.x, self.weight, mask, self.bias, *window, activation=activation)
        return masked_activation(self.pool(self.plain()), mask, activation=activation)


Product = LinearProduct | ConvProduct


def waits(x: Tensor, task_id: int | None) -> bool:
    """Whether a product may wait for its mask: only where it then computes under the same rules."""
    training = task_id is not None and torch.is_grad_enabled()
    return training and not torch.is_autocast_enabled(x.device.type)
