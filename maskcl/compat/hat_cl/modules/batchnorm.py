"""Batch normalization with statistics and affine of its own for every task."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskcl.compat.hat_cl.modules._base import TaskIndexedModuleListABC, wanted_tasks
from maskcl.compat.hat_cl.modules.utils import register_mapping


class _TaskIndexedBatchNorm(TaskIndexedModuleListABC):
    """What they share."""

    @classmethod
    def from_base_module(
        cls, base_module: _BatchNorm, num_tasks: int | None = None, **kwargs: Any
    ) -> _TaskIndexedBatchNorm:
        """A copy for every task, and one for no task.

        Args:
            base_module: an ordinary batch norm.
            num_tasks: how many tasks.
            kwargs: of other modules' conversion.

        Raises:
            ValueError: num_tasks is not given.
        """
        tensor = base_module.weight if base_module.affine else base_module.running_mean
        norm = cls(
            wanted_tasks(cls.__name__, num_tasks),
            base_module.num_features,
            eps=base_module.eps,
            momentum=base_module.momentum,
            affine=base_module.affine,
            track_running_stats=base_module.track_running_stats,
            device=None if tensor is None else tensor.device,
            dtype=None if tensor is None else tensor.dtype,
        )
        norm.load_from_base_module(base_module)
        return norm


@register_mapping
class TaskIndexedBatchNorm1d(_TaskIndexedBatchNorm):
    """One ``nn.BatchNorm1d`` a task: num_tasks, then its arguments."""

    base_class = nn.BatchNorm1d


@register_mapping
class TaskIndexedBatchNorm2d(_TaskIndexedBatchNorm):
    """One ``nn.BatchNorm2d`` a task: num_tasks, then its arguments."""

    base_class = nn.BatchNorm2d


@register_mapping
class TaskIndexedBatchNorm3d(_TaskIndexedBatchNorm):
    """One ``nn.BatchNorm3d`` a task: num_tasks, then its arguments."""

    base_class = nn.BatchNorm3d
