"""The mask of one task: what a HATMasker is converted to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.hat_cl.modules.maskers._base import VectorMaskerABC
from maskcl.compat.hat_cl.types_ import Mask


class AttentionMasker(VectorMaskerABC):
    """A mask gate(scale * attention) in training, binary behind it; tensors in, tensors out.

    Args:
        num_features: U.
        trn_mask_scale: scale in training; None: it has to be given at each call then.
        gate: from scaled attention to mask; None: ``torch.sigmoid``.
        mask_dim: see `VectorMaskerABC`.
        device, dtype: of the attention.
        max_scale: where a gate that is not the sigmoid counts as open or closed.
    """

    trn_mask_scale: Tensor | None

    def __init__(
        self,
        num_features: int,
        trn_mask_scale: float | None = None,
        gate: Callable[[Tensor], Tensor] | None = None,
        mask_dim: int | None = None,
        device: Any = None,
        dtype: Any = None,
        max_scale: float = 100.0,
    ) -> None:
        super().__init__(mask_dim)
        self.attention = nn.Parameter(torch.randn(num_features, device=device, dtype=dtype))
        scale = None if trn_mask_scale is None else torch.as_tensor(trn_mask_scale, device=device)
        self.register_buffer("trn_mask_scale", scale)
        self.gate = torch.sigmoid if gate is None else gate
        self._max_scale = max_scale

    def infer_mask_scale(self) -> Any:
        """``trn_mask_scale`` in training, else None for a binary mask."""
        return self.trn_mask_scale if self.training else None

    def get_mask(self, mask_scale: Any = None) -> Mask:
        """The mask, [U]; bool where it is binary.

        Args:
            mask_scale: None: `infer_mask_scale`.

        Raises:
            ValueError: it trains and there is no scale.
        """
        scale = self.infer_mask_scale() if mask_scale is None else mask_scale
        if scale is not None:
            return self.gate(self.attention * scale)
        if self.training:
            raise ValueError(
                "AttentionMasker: training needs a scale; give trn_mask_scale, or mask_scale"
            )
        return open_units(self.attention, self.gate, self._max_scale)

    def forward(self, data: Tensor, mask_dim: int | None = None, mask_scale: Any = None) -> Tensor:
        """``data`` times the mask of `get_mask`."""
        return self.apply_mask_to(data, mask_dim, mask_scale=mask_scale)

    def __repr__(self) -> str:
        name = getattr(self.gate, "__name__", repr(self.gate))
        return (
            f"AttentionMasker(num_features={self.attention.shape[0]},"
            f" trn_mask_scale={self.trn_mask_scale}, gate={name})"
        )

    __str__ = __repr__


def open_units(attention: Tensor, gate: Callable[[Tensor], Tensor], max_scale: float) -> Tensor:
    """Units whose gate is more than half open at the largest scale, bool [U]."""
    attention = attention.detach()
    return attention > 0 if gate is torch.sigmoid else gate(attention * max_scale) > 0.5
