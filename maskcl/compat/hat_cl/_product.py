"""A layer's product that waits for the mask behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.ops import masked_linear


@dataclass
class LinearProduct:
    """x W^T + b that waits, so that the mask behind it can be its epilogue."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None

    def plain(self) -> Tensor:
        """Without a mask."""
        return F.linear(self.x, self.weight, self.bias)

    def masked(self, mask: Tensor, activation: str) -> Tensor:
        """act(x W^T + b) times the mask."""
        return masked_linear(self.x, self.weight, mask, self.bias, activation=activation)


def waits(x: Tensor, task_id: int | None) -> bool:
    """Whether a product may wait for its mask: only where it then computes under the same rules."""
    training = task_id is not None and torch.is_grad_enabled()
    return training and not torch.is_autocast_enabled(x.device.type)
