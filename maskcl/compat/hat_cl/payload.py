"""What goes through the modules: data, the mask they are under, and the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl._product import ConvProduct, Product
from maskcl.compat.hat_cl.exceptions import MaskDimensionMismatchError
from maskcl.compat.hat_cl.layout import MIXED, Layout, after_module, unit_index
from maskcl.ops import masked_activation
from maskcl.reference.masked_forward import activate

if TYPE_CHECKING:
    from maskcl.compat.hat_cl.modules.maskers.hat_masker import HATMasker


class HATPayload:
    """Data on their way through a network, and what its masks need to know.

    The mask is applied where masked data are asked for. All arguments are attributes.

    Args:
        data: the data.
        masker: whose mask is theirs; kept after it has been applied: it says which inputs of the
            next layer a task uses.
        task_id: the task; None for no task, and no mask.
        mask_scale: scale of soft masks; None for binary ones. Outside training masks are binary.
        locked_task_ids: tasks that must not change; None: all trained ones but ``task_id``.
        prev_maskers: the maskers before; set by the modules.
        mask_applied: the data are masked already.
    """

    def __init__(
        self,
        data: Tensor,
        masker: HATMasker | None = None,
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

    @eager
    def derive(self, data: Tensor | Product, **changes: Any) -> HATPayload:
        """Other data with the rest of this payload.

        Args:
            data: the data, or a product that waits.
            changes: attributes that differ. Unless given, the data are not masked.
        """
        fields = self.to_dict(include_data=False, mask_applied=False)
        extra = {name: changes.pop(name, None) for name in ("layout", "exposed") if name in changes}
        fields.update(changes)
        result = HATPayload(data if isinstance(data, Tensor) else None, **fields)  # type: ignore[arg-type]
        if not isinstance(data, Tensor):
            result._product = data
        result.layout = extra.get("layout", self.layout)
        result.exposed = bool(extra.get("exposed", False))
        result.rearranged = self.rearranged
        return result

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

    @eager
    def waiting_for(self, module: nn.Module) -> HATPayload | None:
        """The payload behind ``module``, to be computed with its mask; None if it cannot wait."""
        product = self._waiting()
        behind = product.then(module) if isinstance(product, ConvProduct) else None
        return None if behind is None else self.derive(behind, mask_applied=True)

    @eager
    def forward_by(self, module: nn.Module, use_masked_data: bool = True) -> HATPayload:
        """The payload behind a module; see `utils.forward_hat_payload`."""
        from maskcl.compat.hat_cl.utils.forward import forward_hat_payload

        return forward_hat_payload(module, self, use_masked_data)

    def to_dict(self, include_data: bool = True, **kwargs: Any) -> dict[str, Any]:
        """Arguments that make such a payload.

        Args:
            include_data: ``data`` too.
            kwargs: others, or other values.
        """
        names = ("masker", "task_id", "mask_scale", "locked_task_ids", "prev_maskers")
        fields = {name: getattr(self, name) for name in (*names, "mask_applied")} | kwargs
        return fields | {"data": self.original_data} if include_data else fields

    @eager
    def apply_mask(self) -> HATPayload:
        """A payload whose data are masked; itself where there is nothing to do."""
        if self.masker is None or self.mask_applied:
            return self
        return self.derive(self.arranged, mask_applied=True)

    @eager
    def after(self, module: nn.Module, data: Tensor, **changes: Any) -> HATPayload:
        """The payload of what a module without weights made of ``data``."""
        out = module(data)
        if self.masker is None:
            return self.derive(out, layout=None, **changes)
        units = self.masker.num_features
        layout = after_module(self.layout, data.shape, out.shape, units)
        return self.derive(out, layout=layout, **changes)

    def _moved(self, op: str, numbers: Sequence[int], data: Tensor, source: HATPayload) -> Any:
        layout = None
        if source.masker is not None:
            layout = _known(source).then(op, tuple(numbers), source.shape)
        return source.derive(data, layout=layout, mask_applied=source.mask_applied)

    @eager
    def reshape(self, *args: Any, **kwargs: Any) -> HATPayload:
        """Reshaped data, masked first; arguments as for ``torch.Tensor.reshape``."""
        source = self.apply_mask()
        data = source.original_data.reshape(*args, **kwargs)
        return self._moved("reshape", data.shape, data, source)

    @eager
    def permute(self, *args: Any, **kwargs: Any) -> HATPayload:
        """Permuted data, masked first; arguments as for ``torch.Tensor.permute``."""
        source = self.apply_mask()
        data = source.original_data.permute(*args, **kwargs)
        dims = kwargs.get("dims", args[0] if args and not isinstance(args[0], int) else args)
        return self._moved("permute", [d % data.dim() for d in dims], data, source)

    @eager
    def transpose(self, dim0: int, dim1: int) -> HATPayload:
        """Data with two dimensions exchanged, masked first."""
        dims = list(range(len(self.shape)))
        dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
        return self.permute(*dims)

    def _merged(self, other: Any) -> list[Any] | None:
        mine, theirs = self.prev_maskers, getattr(other, "prev_maskers", None)
        if not theirs or not mine:
            return mine or theirs
        return [*theirs, *(m for m in mine if not any(m is t for t in theirs))]

    @eager
    def __add__(self, other: HATPayload | Tensor | float) -> HATPayload:
        """The sum of both masked data, to be masked again by this payload's masker."""
        data = self.arranged + (other.arranged if isinstance(other, HATPayload) else other)
        return self._combined(data, other, mask_applied=False)

    @eager
    def __mul__(self, other: HATPayload | Tensor | float) -> HATPayload:
        """The product of both masked data, element by element; masked, therefore."""
        data = self.arranged * (other.arranged if isinstance(other, HATPayload) else other)
        return self._combined(data, other, mask_applied=self.masker is not None)

    def _combined(self, data: Tensor, other: Any, mask_applied: bool) -> HATPayload:
        layout = self.layout
        if self.masker is not None and data.shape != self.shape:
            layout = after_module(layout, self.shape, data.shape, self.masker.num_features)
        return self.derive(
            data, prev_maskers=self._merged(other), layout=layout, mask_applied=mask_applied
        )

    @eager
    def __matmul__(self, other: HATPayload | Tensor) -> HATPayload:
        """The matrix product of both masked data; the masker is ``other``'s.

        Raises:
            TypeError: other is no payload.
        """
        if not isinstance(other, HATPayload):
            raise TypeError(f"HATPayload @ x: x is a {type(other).__name__}, wanted a HATPayload")
        data = self.data @ other.data
        layout = MIXED
        if other.masker is not None and other.data.dim() >= 2:
            layout = _known(other).then("matmul", tuple(data.shape), other.data.shape)
        return self.derive(
            data,
            masker=other.masker,
            prev_maskers=self._merged(other),
            layout=layout,
            mask_applied=other.masker is not None,
        )

    def __repr__(self) -> str:
        return f"HATPayload({', '.join(f'{k}={v}' for k, v in self.to_dict().items())})"

    __str__ = __repr__


def _known(source: HATPayload) -> Layout:
    """Where the units are, found by size for data from outside."""
    if source.layout is not None:
        return source.layout
    assert source.masker is not None
    try:
        return Layout(source.masker.mask_dimension(source.data, None), ())
    except MaskDimensionMismatchError:
        return MIXED
