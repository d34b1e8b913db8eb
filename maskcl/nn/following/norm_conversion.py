"""One norm a task in the place of an ordinary norm."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from maskcl.nn.following.norm_parts import NormParts, parts_of
from maskcl.nn.tasks.norms import (
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
    TaskNorm,
    TaskRMSNorm,
)
from maskcl.nn.tasks.replace_modules import with_hooks, without_hooks

_BATCH_NORMS: dict[type, type] = {
    nn.BatchNorm1d: TaskBatchNorm1d,
    nn.BatchNorm2d: TaskBatchNorm2d,
    nn.BatchNorm3d: TaskBatchNorm3d,
}
_NORMS = (*_BATCH_NORMS, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)


def task_norm(module: nn.Module, num_tasks: int) -> nn.Module | None:
    """A TaskNorm of copies of an ordinary norm; None for a module of another kind.

    A norm of a class of the user's own that goes on with other modules (timm's have an activation
    in them) becomes a Sequential: the TaskNorm, then those modules.
    """
    kind = next((k for k in type(module).__mro__ if k in _NORMS), None)
    if kind is None:
        return None
    found = NormParts(module, [], True) if type(module) is kind else parts_of(module)
    if kind in _BATCH_NORMS and not found.is_channelwise:
        return None
    new = _task_norm_like(module, kind, num_tasks)
    new.set_norms(num_tasks, lambda: without_hooks(copy.deepcopy(found.norm)))
    new.training = module.training
    return with_hooks(nn.Sequential(new, *found.tail) if found.tail else new, module)


def _task_norm_like(module: Any, kind: type[nn.Module], num_tasks: int) -> TaskNorm:
    """An empty one for this kind of norm."""
    if kind is nn.LayerNorm:
        return TaskLayerNorm(module.normalized_shape, num_tasks, device="meta")
    if kind is nn.RMSNorm:
        return TaskRMSNorm(module.normalized_shape, num_tasks, device="meta")
    if kind is nn.GroupNorm:
        return TaskGroupNorm(module.num_groups, module.num_channels, num_tasks, device="meta")
    return _BATCH_NORMS[kind](module.num_features, num_tasks, device="meta")
