"""A payload through any module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl.layout import MIXED
from maskcl.compat.hat_cl.modules._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl.modules.utils import base_to_task_dependent_mapping as mapping
from maskcl.compat.hat_cl.payload import HATPayload

# f(0) is not 0, so a mask in front would leave closed units open: it comes behind, as in HAT's
# h' = a h (section 2.2).
_MASKED_BEHIND = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus)
# Every output comes from many units.
_MIXING = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.ChannelShuffle)


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
    if _takes_payloads(module):
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
    _refuse_learning(module)
    if isinstance(module, (nn.Flatten, nn.Unflatten)):
        # The original data have the masked data's shape, and may be at hand.
        return hat_payload.reshape(module(hat_payload.original_data).shape)
    return _plain(module, hat_payload, use_masked_data)


def _takes_payloads(module: nn.Module) -> bool:
    if isinstance(module, HATPayloadCarrierMixin):
        return True
    # A model of one's own is an ordinary module; in a sequence each part is asked.
    return not isinstance(module, nn.Sequential) and any(map(_takes_payloads, module.children()))


def _plain(module: nn.Module, pld: HATPayload, use_masked_data: bool) -> HATPayload:
    unmasked = None if use_masked_data and not isinstance(module, _MASKED_BEHIND) else True
    # Modules of torch's own take images in any order; those of users may well view them.
    known = type(module).__module__.startswith("torch.nn.") and not list(module.children())
    source: Tensor | None = None
    if unmasked:
        source = pld.part(False) if known else pld.unmasked_data
    if source is not None:
        return pld.after(module, _own(module, source), exposed=pld.exposed)
    if not _hooked(module) and (behind := pld.waiting_for(module)) is not None:
        return behind
    if type(module) is nn.ReLU and not _hooked(module):
        # relu(m x) = m relu(x): the mask's pass does both.
        layout = pld.layout
        return pld.derive(pld.activated("relu"), layout=layout, mask_applied=_masked(pld))
    # f(0) != 0 behind a mask that was applied before: the closed units are closed once more.
    keeps = _masked(pld) and not isinstance(module, _MASKED_BEHIND)
    data = pld.arranged if known else pld.data
    behind = pld.after(module, _own(module, data), mask_applied=keeps)
    if isinstance(module, _MIXING) and pld.masker is not None:
        behind.layout = MIXED
    return behind


def _masked(pld: HATPayload) -> bool:
    return pld.masker is not None or pld.mask_applied


def _own(module: nn.Module, data: Tensor) -> Tensor:
    """Data that the module may write in place: the payload keeps its own."""
    writes = any(getattr(part, "inplace", False) for part in module.modules())
    return data.clone() if writes else data


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _refuse_learning(module: nn.Module) -> None:
    learns: Any = next((n for n, p in module.named_parameters() if p.requires_grad), None)
    if learns is None and module.training:
        buffers = (name for name, _ in module.named_buffers())
        learns = next((n for n in buffers if n.rsplit(".", 1)[-1] == "running_mean"), None)
    if learns is None:
        return
    name = type(module).__name__
    found = mapping.get(type(module))
    instead = "" if found is None else f"; use {found.__name__}"
    raise RuntimeError(f"{name}: {learns} would be shared by all tasks without protection{instead}")
