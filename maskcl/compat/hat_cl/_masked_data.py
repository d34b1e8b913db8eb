"""Data, before or behind their mask, which is applied where masked data are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl._unit_masker import UnitMasker
from maskcl.compat.hat_cl._waiting_product import Product
from maskcl.compat.hat_cl.exceptions import MaskDimensionMismatchError
from maskcl.compat.hat_cl.layout import MIXED, Layout, unit_index
from maskcl.ops import masked_activation
from maskcl.reference.masked_forward import activate


class MaskedData:
    """What a `HATPayload` carries, and how its data come by their mask; arguments as there."""

    def __init__(
        self,
        data: Tensor,
        masker: UnitMasker | None = None,
        task_id: int | None = None,
        mask_scale: Any = None,
        locked_task_ids: Sequence[int] | None = None,
        prev_maskers: list[Any] | None = None,
        mask_applied: bool = False,
    ) -> None:
        self._masked_data = data if mask_applied else None
        self._unmasked_data = None if mask_applied else data
        self._product: Product | None = None
        self.masker = masker
        self.task_id = task_id
        self.mask_scale = mask_scale
        self.locked_task_ids = locked_task_ids
        self.prev_maskers = prev_maskers
        self.mask_applied = mask_applied
        # Where the masker's units are; None: data from outside, found by size.
        self.layout: Layout | None = None
        # Whether closed units of the unmasked data still hold what other tasks make of them.
        self.exposed = False
        # Whether a layer has put images in channels_last that came otherwise.
        self.rearranged = False

    @property
    @eager
    def arranged(self) -> Tensor:
        """The data, as ``data``, in whatever order of memory the last module left them."""
        found = self.part(True)
        found = self.part(False) if found is None else found
        assert found is not None
        return found

    @eager
    def part(self, masked: bool) -> Tensor | None:
        """Masked or unmasked data in whatever order of memory; None where there are none."""
        if masked:
            if self._masked_data is None and self.masker is not None:
                self._masked_data = self._mask("identity")
            return self._masked_data
        if self.mask_applied:
            return None
        if self._unmasked_data is None and self._product is not None:
            self._unmasked_data = self._product.plain()
        return self._unmasked_data

    @property
    @eager
    def data(self) -> Tensor:
        """The masked data where there is a masker, else the unmasked ones."""
        return self._ordinary(self.arranged)

    @property
    @eager
    def masked_data(self) -> Tensor | None:
        """The masked data; None where there is no masker."""
        found = self.part(True)
        return None if found is None else self._ordinary(found)

    @property
    @eager
    def unmasked_data(self) -> Tensor | None:
        """The data before their mask; None where they came masked."""
        found = self.part(False)
        return None if found is None else self._ordinary(found)

    @property
    @eager
    def original_data(self) -> Tensor:
        """The data that the payload was made of."""
        found = self.part(self.mask_applied)
        assert found is not None
        return self._ordinary(found)

    @property
    def shape(self) -> torch.Size:
        """The data's."""
        return self.arranged.shape

    def _ordinary(self, data: Tensor) -> Tensor:
        """Images as nn.Conv2d would leave them, so that a view of them works."""
        return data.contiguous() if self.rearranged else data

    @eager
    def activated(self, activation: str) -> Tensor:
        """act(data) under their mask, in one pass; for activations with act(m x) = m act(x)."""
        if self.masker is None or self._masked_data is not None:
            return activate(self.arranged, activation, 0.0)
        return self._mask(activation)

    def _mask(self, activation: str) -> Tensor:
        masker = self.masker
        assert masker is not None
        mask = masker.working_mask(self.task_id, self.mask_scale)
        if mask is None:
            unmasked = self.part(False)
            assert unmasked is not None
            return activate(unmasked, activation, 0.0)
        if (product := self._waiting()) is not None:
            return product.masked(mask, activation)
        data = self.part(False)
        assert data is not None
        if self.layout is not None and (self.layout.ops or self.layout.mixed):
            if (index := unit_index(self.layout)) is None or index.shape != data.shape:
                raise MaskDimensionMismatchError("units have been mixed: the mask fits no more")
            return activate(data * mask[index.to(data.device)], activation, 0.0)
        dim = masker.mask_dimension(data, self.layout)
        masker.reshape_mask(data, mask, dim, expand_as_data=False)
        if not data.is_floating_point():
            data = data.to(mask.dtype)
        return masked_activation(data, mask, activation=activation, channel_dim=dim)

    def _waiting(self) -> Product | None:
        """The product, if it can still be computed together with its mask."""
        masker = self.masker
        if masker is None or masker.mask_dim is not None:
            return None
        return self._product if self._masked_data is None and self._unmasked_data is None else None

    def to_dict(self, include_data: bool = True, **kwargs: Any) -> dict[str, Any]:
        """Arguments that make such a payload.

        Args:
            include_data: ``data`` too.
            kwargs: others, or other values.
        """
        names = ("masker", "task_id", "mask_scale", "locked_task_ids", "prev_maskers")
        fields = {name: getattr(self, name) for name in (*names, "mask_applied")} | kwargs
        return fields | {"data": self.original_data} if include_data else fields

    def _known_layout(self) -> Layout:
        """Where the masker's units are, found by size for data from outside."""
        if self.layout is not None:
            return self.layout
        assert self.masker is not None
        try:
            return Layout(self.masker.mask_dimension(self.data, None), ())
        except MaskDimensionMismatchError:
            return MIXED
