"""Layer normalization with an affine of its own for every task."""

from __future__ import annotations

from typing import Any

from torch import nn

from maskcl.compat.hat_cl.modules._base import TaskIndexedModuleListABC, wanted_tasks
from maskcl.compat.hat_cl.modules.utils import register_mapping


@register_mapping
class TaskIndexedLayerNorm(TaskIndexedModuleListABC):
    """One ``nn.LayerNorm`` a task: num_tasks, then its arguments.

    It mixes units, so a layer's output is masked before it too.
    """

    base_class = nn.LayerNorm
    mixes_units = True

    @classmethod
    def from_base_module(
        cls, base_module: nn.LayerNorm, num_tasks: int | None = None, **kwargs: Any
    ) -> TaskIndexedLayerNorm:
        """A copy for every task, and one for no task.

        Args:
            base_module: an ordinary layer norm.
            num_tasks: how many tasks.
            kwargs: of other modules' conversion.

        Raises:
            ValueError: num_tasks is not given.
        """
        weight = base_module.weight
        norm = cls(
            wanted_tasks(cls.__name__, num_tasks),
            list(base_module.normalized_shape),
            eps=base_module.eps,
            elementwise_affine=base_module.elementwise_affine,
            bias=base_module.bias is not None,
            device=None if weight is None else weight.device,
            dtype=None if weight is None else weight.dtype,
        )
        norm.load_from_base_module(base_module)
        return norm
