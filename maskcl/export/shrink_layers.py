"""Takes channels out of layers and norms, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskcl.export.channel_rules.graph_layers import linears
from maskcl.export.channel_rules.linear_and_conv import CONVS


@torch.no_grad()
def shrink(module: Any, inputs: Tensor | None, outputs: Tensor) -> None:
    """Take channels out of a module, in place.

    Args:
        module: a linear layer, a convolution, a message passing or a norm.
        inputs: channels that stay, bool [in]; None for a norm.
        outputs: channels that stay, bool [out].
    """
    if isinstance(module, (_BatchNorm, nn.GroupNorm)):
        _shrink_norm(module, outputs)
        return
    assert inputs is not None
    if isinstance(module, nn.Linear):
        _shrink_weights(module, inputs, outputs)
        module.in_features, module.out_features = int(inputs.sum()), int(outputs.sum())
    elif isinstance(module, CONVS):
        _shrink_conv(module, inputs, outputs)
    else:
        _shrink_message_passing(module, inputs, outputs)


def _shrink_norm(norm: Any, outputs: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        _take(norm, name, lambda v: v[outputs])
    if isinstance(norm, nn.GroupNorm):
        norm.num_groups = int(outputs.view(norm.num_groups, -1).any(1).sum())
        norm.num_channels = int(outputs.sum())
    else:
        norm.num_features = int(outputs.sum())


def _shrink_weights(module: nn.Module, inputs: Tensor, outputs: Tensor) -> None:
    """Weights [out, in] and a bias [out]."""
    _take(module, "weight", lambda w: w[outputs][:, inputs])
    _take(module, "bias", lambda b: b[outputs])


def _shrink_conv(conv: Any, inputs: Tensor, outputs: Tensor) -> None:
    ins, outs = inputs.view(conv.groups, -1), outputs.view(conv.groups, -1)
    live = outs.any(1) | ins.any(1)
    groups = conv.weight.view(conv.groups, -1, *conv.weight.shape[1:])
    parts = [groups[g][outs[g]][:, ins[g]] for g in live.nonzero().flatten().tolist()]
    _take(conv, "weight", lambda w: torch.cat(parts))
    _take(conv, "bias", lambda b: b[outputs])
    conv.groups = int(live.sum())
    conv.in_channels, conv.out_channels = int(inputs.sum()), int(outputs.sum())


def _shrink_message_passing(conv: Any, inputs: Tensor, outputs: Tensor) -> None:
    for part in linears(conv):
        if isinstance(part, nn.Linear):
            shrink(part, inputs, outputs)
            continue
        _shrink_weights(part, inputs, outputs)
        part.in_channels, part.out_channels = int(inputs.sum()), int(outputs.sum())
    conv.in_channels = int(inputs.sum())
    if not bool(outputs.all()):  # a convolution with attention keeps all
        _take(conv, "bias", lambda b: b[outputs])
        conv.out_channels = int(outputs.sum())


def _take(module: nn.Module, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Change a parameter or buffer of a module, where it has one of the name."""
    value = getattr(module, name, None)
    if value is None:
        return
    new = change(value.detach()).clone()
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(new, requires_grad=value.requires_grad)
    else:
        module._buffers[name] = new
