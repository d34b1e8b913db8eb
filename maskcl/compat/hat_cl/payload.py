"""What goes through the modules: data, the mask they are under, and the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl._masked_data import MaskedData
from maskcl.compat.hat_cl._module_traits import (
    MASKED_BEHIND,
    MIXING,
    hooked,
    refuse_learning,
    takes_payloads,
    writable,
)
from maskcl.compat.hat_cl._waiting_product import ConvProduct, Product
from maskcl.compat.hat_cl.layout import MIXED, after_module


class HATPayload(MaskedData):
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

    @eager
    def waiting_for(self, module: nn.Module) -> HATPayload | None:
        """The payload behind ``module``, to be computed with its mask; None if it cannot wait."""
        product = self._waiting()
        behind = product.then(module) if isinstance(product, ConvProduct) else None
        return None if behind is None else self.derive(behind, mask_applied=True)

    @eager
    def forward_by(self, module: nn.Module, use_masked_data: bool = True) -> HATPayload:
        """The payload behind a module; see `forward_hat_payload`."""
        return forward_hat_payload(module, self, use_masked_data)

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
            layout = source._known_layout().then(op, tuple(numbers), source.shape)
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
            layout = other._known_layout().then("matmul", tuple(data.shape), other.data.shape)
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


@eager
def forward_hat_payload(
    module: nn.Module, hat_payload: HATPayload, use_masked_data: bool = True
) -> HATPayload:
    """The payload behind any module.

    A module that takes payloads, or has parts that do, gets the payload, an ``nn.Sequential`` hands
    it from one to the next, and any other module gets the data.

    Args:
        module: the module.
        hat_payload: the payload.
        use_masked_data: for a module that takes data: the masked data, else the unmasked ones,
            whose mask comes behind. Modules with f(0) != 0 (sigmoid, softplus) always get the
            unmasked ones.

    Raises:
        RuntimeError: a task is active, and the module has parameters to train or statistics to
            collect, which tasks would then share without protection.
    """
    if takes_payloads(module):
        behind: HATPayload = module(hat_payload)
        return behind
    if isinstance(module, nn.Sequential):
        for part in module:
            hat_payload = forward_hat_payload(part, hat_payload, use_masked_data)
        return hat_payload
    if hat_payload.task_id is None:
        return hat_payload.after(module, hat_payload.data)
    if isinstance(module, nn.Identity):
        return hat_payload
    refuse_learning(module)
    if isinstance(module, (nn.Flatten, nn.Unflatten)):
        # The original data have the masked data's shape, and may be at hand.
        return hat_payload.reshape(module(hat_payload.original_data).shape)
    return _plain(module, hat_payload, use_masked_data)


def _plain(module: nn.Module, pld: HATPayload, use_masked_data: bool) -> HATPayload:
    unmasked = None if use_masked_data and not isinstance(module, MASKED_BEHIND) else True
    # Modules of torch's own take images in any order; those of users may well view them.
    known = type(module).__module__.startswith("torch.nn.") and not list(module.children())
    source: Tensor | None = None
    if unmasked:
        source = pld.part(False) if known else pld.unmasked_data
    if source is not None:
        return pld.after(module, writable(module, source), exposed=pld.exposed)
    if not hooked(module) and (behind := pld.waiting_for(module)) is not None:
        return behind
    if type(module) is nn.ReLU and not hooked(module):
        # relu(m x) = m relu(x): the mask's pass does both.
        layout = pld.layout
        return pld.derive(pld.activated("relu"), layout=layout, mask_applied=_masked(pld))
    # f(0) != 0 behind a mask that was applied before: the closed units are closed once more.
    keeps = _masked(pld) and not isinstance(module, MASKED_BEHIND)
    data = pld.arranged if known else pld.data
    behind = pld.after(module, writable(module, data), mask_applied=keeps)
    if isinstance(module, MIXING) and pld.masker is not None:
        behind.layout = MIXED
    return behind


def _masked(pld: HATPayload) -> bool:
    return pld.masker is not None or pld.mask_applied
