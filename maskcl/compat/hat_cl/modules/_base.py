"""Bases of the task dependent modules: payloads in, payloads out."""

from __future__ import annotations

from abc import ABC
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from maskcl.compat.hat_cl._base import (
    HATModuleABC,
    HATPayloadCarrierMixin,
    TaskDependentModuleABC,
)
from maskcl.compat.hat_cl._step_protection import Owner
from maskcl.compat.hat_cl.modules._masked_layer import HATMaskedModuleABC
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.types_ import ForgetResult

# All but the list and wanted_tasks are defined elsewhere; hat-cl has them in this module.
__all__ = [
    "HATMaskedModuleABC",
    "HATModuleABC",
    "HATPayloadCarrierMixin",
    "TaskDependentModuleABC",
    "TaskIndexedModuleListABC",
    "wanted_tasks",
]


class TaskIndexedModuleListABC(nn.ModuleList, TaskDependentModuleABC, Owner, ABC):
    """One ordinary module a task, and one more for payloads of no task.

    Args:
        num_tasks: how many tasks.
        args, kwargs: of ``base_class``.

    Raises:
        ValueError: num_tasks is below 1.
    """

    # Whether it mixes units: then it must not see what is behind closed gates.
    mixes_units = False

    def __init__(self, num_tasks: int, *args: Any, **kwargs: Any) -> None:
        if num_tasks < 1:
            raise ValueError(f"{type(self).__name__}: num_tasks is {num_tasks}, wanted at least 1")
        super().__init__()
        for _ in range(num_tasks + 1):
            self.append(self.base_class(*args, **kwargs))

    @property
    def num_tasks(self) -> int:
        """How many tasks it has modules for; the one of no task does not count."""
        return len(self) - 1

    def forward(self, pld: HATPayload) -> HATPayload:
        """The task's module on the unmasked data; the mask comes behind."""
        return self.forward_(pld, use_masked_data=False)

    def forward_(self, pld: HATPayload, use_masked_data: bool) -> HATPayload:
        """The task's module on the payload's data.

        Whatever it is given, its output is masked (again) where the data are next asked for: the
        shift of a norm opens closed units.

        Args:
            pld: the payload.
            use_masked_data: mask before the module too; also done where it mixes units and closed
                ones still hold other tasks' values.
        """
        if pld.task_id is not None:
            if not 0 <= pld.task_id < self.num_tasks:
                raise ValueError(
                    f"{type(self).__name__}: task_id is {pld.task_id}, wanted one of"
                    f" {self.num_tasks} tasks"
                )
            if self.training and torch.is_grad_enabled():
                self.note(pld.task_id, None)
        masked = use_masked_data or (self.mixes_units and pld.exposed)
        data = pld.part(masked)
        data = pld.arranged if data is None else data
        exposed = pld.exposed and not masked
        return pld.derive(self[pld.task_id](data), exposed=exposed)

    def own_parameters(self) -> list[list[nn.Parameter]]:
        """By task, what belongs to it alone."""
        return [list(self[k].parameters()) for k in range(self.num_tasks)]

    def forget(
        self,
        task_id: int,
        dry_run: bool = False,
        module_name: str | None = None,
        locked_task_ids: list[int] | None = None,
    ) -> ForgetResult:
        """Reset the task's module; other tasks have no part in it."""
        if not 0 <= task_id < self.num_tasks:
            raise ValueError(
                f"{type(self).__name__}: task_id is {task_id}, wanted one of {self.num_tasks} tasks"
            )
        if not dry_run:
            self.reset(self[task_id])
        return self._forget_result(task_id, module_name)

    def reset(self, module: nn.Module) -> None:
        """Put one of the modules back to its start."""
        module.reset_parameters()  # type: ignore[operator]

    def _forget_result(self, task_id: int, module_name: str | None) -> ForgetResult:
        result = {}
        for name, parameter in self[task_id].named_parameters():
            forgotten = torch.zeros(len(self), parameter.numel(), dtype=torch.bool)
            forgotten[task_id] = True
            result[f"{module_name or type(self).__name__}.{name}"] = forgotten
        return ForgetResult(**result)

    def to_base_module(self, task_id: int | None = None, **kwargs: Any) -> nn.Module:
        """A copy of the task's module, or of that of no task.

        Args:
            task_id: which.
            kwargs: of other modules' conversion.
        """
        return deepcopy(self[task_id])

    def load_from_base_module(self, base_module: nn.Module) -> None:
        """Copy parameters and statistics to every task's module and to that of no task."""
        for module in self:
            module.load_state_dict(base_module.state_dict())

    def __getitem__(self, key: Any) -> Any:
        key = getattr(key, "task_id", key)
        return nn.ModuleList.__getitem__(self, -1 if key is None else key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_tasks={self.num_tasks}, base_module={self[0]})"

    __str__ = __repr__


def wanted_tasks(name: str, num_tasks: int | None) -> int:
    """``num_tasks`` of a conversion.

    Raises:
        ValueError: it was not given.
    """
    if num_tasks is None:
        raise ValueError(f"{name}.from_base_module: num_tasks is None, wanted how many tasks")
    return num_tasks
