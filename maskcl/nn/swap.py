"""Modules in the place of others: task-aware layers and norms for ordinary ones, and back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import nn

from maskcl.nn.layers import HATConv1d, HATConv2d, HATConv3d, HATLinear
from maskcl.nn.message_passing import swapped_convolution
from maskcl.nn.norms import (
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
    TaskNorm,
)
from maskcl.nn.opened import Opened, computes_as, opened
from maskcl.nn.same_padding import same_padding
from maskcl.nn.topology import HATLayer

_CONVS: dict[type, type] = {nn.Conv1d: HATConv1d, nn.Conv2d: HATConv2d, nn.Conv3d: HATConv3d}
_BATCH_NORMS: dict[type, type] = {
    nn.BatchNorm1d: TaskBatchNorm1d,
    nn.BatchNorm2d: TaskBatchNorm2d,
    nn.BatchNorm3d: TaskBatchNorm3d,
}
_NORMS = (*_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)


def replace_modules(model: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put ``change(child)`` in the place of each child for which it is not None, everywhere.

    A module that occurs twice is changed once.
    """
    done: dict[int, nn.Module | None] = {}
    kept: list[nn.Module] = []
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is None:
                continue
            if id(child) not in done:
                kept.append(child)
                done[id(child)] = change(child)
            if (new := done[id(child)]) is not None:
                parent._modules[name] = new


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


def task_norm(module: nn.Module, num_tasks: int) -> nn.Module | None:
    """A TaskNorm of copies of an ordinary norm; None for a module of another kind.

    A norm of a class of the user's own that goes on with other modules (timm's have an activation
    in them) becomes a Sequential: the TaskNorm, then those modules.
    """
    kind = next((k for k in type(module).__mro__ if k in _NORMS), None)
    if kind is None:
        return None
    found = Opened(module, [], True) if type(module) is kind else opened(module)
    if kind in _BATCH_NORMS and not found.is_channelwise:
        return None
    new = _task_norm_like(module, kind, num_tasks)
    new.norms = nn.ModuleList(copy.deepcopy(found.norm) for _ in range(num_tasks))
    new.training = module.training
    return with_hooks(nn.Sequential(new, *found.tail) if found.tail else new, module)


def _task_norm_like(module: Any, kind: type[nn.Module], num_tasks: int) -> TaskNorm:
    """An empty one for this kind of norm."""
    if kind is nn.LayerNorm:
        return TaskLayerNorm(module.normalized_shape, num_tasks, device="meta")
    if kind is nn.GroupNorm:
        return TaskGroupNorm(module.num_groups, module.num_channels, num_tasks, device="meta")
    return _BATCH_NORMS[kind](module.num_features, num_tasks, device="meta")


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


def conv_options(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    """A convolution's constructor arguments."""
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None}


def with_hooks(new: Any, old: nn.Module) -> Any:
    """``new`` with the hooks and the mode of ``old``."""
    for name, value in vars(old).items():
        if "hook" in name and value:
            setattr(new, name, value)
    new.training = old.training
    return new
