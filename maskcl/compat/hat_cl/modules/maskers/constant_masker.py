"""A mask that does not learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.compat.hat_cl.modules.maskers._base import VectorMaskerABC
from maskcl.compat.hat_cl.types_ import Mask


class ConstantMasker(VectorMaskerABC):
    """Keeps a mask with a model.

    Args:
        mask: [U]; copied. None: drawn from N(0, 1).
        num_features: U, where mask is None.
        mask_dim: see `VectorMaskerABC`.
        device, dtype: of the mask.

    Raises:
        ValueError: neither mask nor num_features is given, or mask is no vector.
    """

    mask: Tensor

    def __init__(
        self,
        mask: Tensor | None = None,
        num_features: int | None = None,
        mask_dim: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(mask_dim)
        if mask is None:
            if num_features is None:
                raise ValueError("ConstantMasker: give mask or num_features")
            mask = torch.randn(num_features, device=device, dtype=dtype)
        elif mask.dim() != 1:
            raise ValueError(f"ConstantMasker: mask has shape {list(mask.shape)}, wanted a vector")
        else:
            mask = mask.detach().to(device=device, dtype=dtype, copy=True)
        self.register_buffer("mask", mask)

    def get_mask(self) -> Mask:
        """The mask, [U]."""
        return self.mask

    def forward(self, data: Tensor, mask_dim: int | None = None) -> Tensor:
        """``data`` times the mask."""
        return self.apply_mask_to(data, mask_dim)
