"""HAT layers in the place of ordinary ones, with the same weights."""

from __future__ import annotations

from torch import nn

from maskcl.nn.following.norm_conversion import task_norm
from maskcl.nn.following.norm_parts import computes_as
from maskcl.nn.hat.layers import HATConv1d, HATConv2d, HATConv3d, HATLinear
from maskcl.nn.hat.message_passing import swapped_convolution
from maskcl.nn.hat.same_padding import same_padding
from maskcl.nn.hat.topology import HATLayer
from maskcl.nn.tasks.replace_modules import conv_options, with_hooks

_CONVS: dict[type, type] = {nn.Conv1d: HATConv1d, nn.Conv2d: HATConv2d, nn.Conv3d: HATConv3d}


def task_aware_like(module: nn.Module, num_tasks: int) -> nn.Module | None:
    """The module that carries tasks' masks in the place of an ordinary one; None where it stays."""
    kind = next((k for k in type(module).__mro__ if k is nn.Linear or k in _CONVS), None)
    if kind is not None:
        return _layer_like(module, kind) if _is_plain_layer(module) else None
    return swapped_convolution(module) or task_norm(module, num_tasks)


def _layer_like(module: nn.Module, kind: type[nn.Module]) -> nn.Module | None:
    """The HAT layer of one that computes what ``kind`` does, behind a SamePadding that it has."""
    if computes_as(module, kind):
        return with_hooks(_swapped_layer(module), module)
    if (padding := same_padding(module)) is None:
        return None
    return with_hooks(nn.Sequential(padding, _swapped_layer(module)), module)


def _is_plain_layer(module: nn.Module) -> bool:
    """Whether it has a weight (and bias) of its own and nothing else, and trains."""
    own = dict(module.named_parameters())
    return set(own) <= {"weight", "bias"} and any(p.requires_grad for p in own.values())


def _swapped_layer(module: nn.Module) -> HATLayer:
    # Built without memory, then given the very parameters of the (copied) layer.
    if isinstance(module, nn.Linear):
        bias = module.bias is not None
        new: HATLayer = HATLinear(module.in_features, module.out_features, bias, device="meta")
    else:
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        kind = next(k for k in type(module).__mro__ if k in _CONVS)
        new = _CONVS[kind](**conv_options(module), device="meta")
    new.weight, new.bias = module.weight, module.bias
    new.training = module.training
    return new
