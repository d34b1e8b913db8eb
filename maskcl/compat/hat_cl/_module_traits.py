"""What a module does to a payload that passes: takes it, learns, opens zeros, writes in place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maskcl.compat.hat_cl._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl._counterparts import base_to_task_dependent_mapping as mapping

# f(0) is not 0, so a mask in front would leave closed units open: it comes behind, as in HAT's
# h' = a h (section 2.2).
MASKED_BEHIND = (nn.Sigmoid, nn.Hardsigmoid, nn.LogSigmoid, nn.Softplus)
# Every output comes from many units.
MIXING = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.ChannelShuffle)


def takes_payloads(module: nn.Module) -> bool:
    """Whether it takes a payload, or has parts that do."""
    if isinstance(module, HATPayloadCarrierMixin):
        return True
    # A model of one's own is an ordinary module; in a sequence each part is asked.
    return not isinstance(module, nn.Sequential) and any(map(takes_payloads, module.children()))


def writable(module: nn.Module, data: Tensor) -> Tensor:
    """Data that the module may write in place: the payload keeps its own."""
    writes = any(getattr(part, "inplace", False) for part in module.modules())
    return data.clone() if writes else data


def hooked(module: nn.Module) -> bool:
    """Whether somebody watches its calls, which then have to take place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def refuse_learning(module: nn.Module) -> None:
    """Let pass what has nothing that tasks would share without protection.

    Raises:
        RuntimeError: it has parameters to train or, in training, statistics to collect.
    """
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
