"""A parameter with a value of its own for every task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.hat_cl._base import TaskDependentMixin
from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl._step_protection import Owner
from maskcl.compat.hat_cl.types_ import ForgetResult


class TaskIndexedParameter(TaskDependentMixin, nn.ParameterList, Owner):
    """A list of parameters, one a task: ``parameter[task_id]``.

    Args:
        num_tasks: how many.
        data: where each starts; every task gets a copy.
        requires_grad: as for ``nn.Parameter``.

    Raises:
        ValueError: num_tasks is below 1.
    """

    base_class = nn.Parameter
    _initial: Tensor

    def __init__(self, num_tasks: int, data: Tensor, requires_grad: bool = True) -> None:
        if num_tasks < 1:
            raise ValueError(f"TaskIndexedParameter: num_tasks is {num_tasks}, wanted at least 1")
        nn.ParameterList.__init__(self)
        Owner.__init__(self)
        start = data.detach()
        for _ in range(num_tasks):
            self.append(nn.Parameter(start.clone(), requires_grad=requires_grad))
        self.register_buffer("_initial", start.clone(), persistent=False)

    @property
    def num_tasks(self) -> int:
        """How many tasks it has values for."""
        return len(self)

    @eager
    def __getitem__(self, index: Any) -> Any:
        if self.training and isinstance(index, int) and torch.is_grad_enabled():
            self.note(index % len(self), None)
        return nn.ParameterList.__getitem__(self, index)

    def own_parameters(self) -> list[list[nn.Parameter]]:
        """By task, what belongs to it alone."""
        return [[nn.ParameterList.__getitem__(self, k)] for k in range(len(self))]

    @torch.no_grad()
    def forget(
        self, task_id: int, dry_run: bool = False, module_name: str | None = None
    ) -> ForgetResult:
        """Put a task's value back to where it started.

        Returns:
            which elements are forgotten, bool [num_tasks, *].
        """
        rows = [p for (p,) in self.own_parameters()]
        forgotten = torch.zeros(len(rows), *rows[0].shape, dtype=torch.bool)
        forgotten[task_id] = True
        if not dry_run:
            rows[task_id].copy_(self._initial)
        name = module_name or type(self).__name__
        return ForgetResult(**{f"{name}.parameter": forgotten})
