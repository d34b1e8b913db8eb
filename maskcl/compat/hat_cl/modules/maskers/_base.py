"""Base of the modules that multiply data with a vector along one dimension."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from maskcl.compat.hat_cl.exceptions import (
    MaskDimensionInferenceWarning,
    MaskDimensionMismatchError,
)
from maskcl.compat.hat_cl.types_ import Mask


class VectorMaskerABC(nn.Module, ABC):
    """A mask of one element a unit.

    Args:
        mask_dim: dimension of the data that it lies along; None: see `infer_mask_dim`.
    """

    def __init__(self, mask_dim: int | None) -> None:
        super().__init__()
        self.mask_dim = mask_dim

    @abstractmethod
    def get_mask(self, *args: Any, **kwargs: Any) -> Mask:
        """The mask, [U]."""

    def apply_mask_to(
        self, data: Tensor, mask_dim: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``data`` times the mask.

        Args:
            data: any shape with the mask's size in one dimension.
            mask_dim: instead of the masker's own.
            *args: of `get_mask`.
            **kwargs: of `get_mask`.
        """
        return data * self.reshape_mask(
            data, self.get_mask(*args, **kwargs), self.mask_dim if mask_dim is None else mask_dim
        )

    @staticmethod
    def infer_mask_dim(data: Tensor, mask: Tensor) -> int:
        """The first dimension but the batch's that has the mask's size.

        Warns:
            MaskDimensionInferenceWarning: several have it.

        Raises:
            MaskDimensionMismatchError: none has it.
        """
        found = [d for d in range(1, data.dim()) if data.shape[d] == mask.shape[0]]
        if not found:
            raise MaskDimensionMismatchError(
                f"mask of {mask.shape[0]} units: data of shape {list(data.shape)} have no such"
                " dimension behind the batch's"
            )
        if len(found) > 1:
            warnings.warn(
                f"mask of {mask.shape[0]} units: data of shape {list(data.shape)} have the"
                f" dimensions {found} of that size, took {found[0]}; give mask_dim to choose",
                MaskDimensionInferenceWarning,
                stacklevel=3,
            )
        return found[0]

    @staticmethod
    def reshape_mask(
        data: Tensor, mask: Tensor, mask_dim: int | None = None, expand_as_data: bool = True
    ) -> Tensor:
        """The mask with the data's number of dimensions, or expanded to their shape.

        Args:
            data: what it is for.
            mask: [U].
            mask_dim: where it lies; None: `infer_mask_dim`.
            expand_as_data: to the data's shape.

        Raises:
            MaskDimensionMismatchError: the dimension has another size.
        """
        dim = VectorMaskerABC.infer_mask_dim(data, mask) if mask_dim is None else mask_dim
        if not -data.dim() <= dim < data.dim() or data.shape[dim] != mask.shape[0]:
            raise MaskDimensionMismatchError(
                f"mask of {mask.shape[0]} units along dimension {dim}: data have shape"
                f" {list(data.shape)}"
            )
        ones = [1] * data.dim()
        ones[dim] = -1
        mask = mask.reshape(ones)
        return mask.expand_as(data) if expand_as_data else mask

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The masked data."""
