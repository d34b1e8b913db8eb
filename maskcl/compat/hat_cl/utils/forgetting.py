"""Forgetting one task in a whole module."""

from __future__ import annotations

import warnings
from typing import Any

from torch import Tensor, nn

from maskcl.compat.hat_cl._base import TaskDependentModuleABC
from maskcl.compat.hat_cl.exceptions import NoParameterToForgetWarning
from maskcl.compat.hat_cl.modules import HATMasker
from maskcl.compat.hat_cl.modules._masked_layer import HATMaskedModuleABC
from maskcl.compat.hat_cl.parameter import TaskIndexedParameter
from maskcl.compat.hat_cl.types_ import ForgetResult

_Plans = dict[int, tuple[Tensor, Tensor]]


def forget_task(
    module: nn.Module,
    task_id: int,
    dry_run: bool = False,
    module_name: str | None = None,
    locked_task_ids: list[int] | None = None,
) -> ForgetResult:
    """Reset what belongs to one task alone: weights, masks, norms, parameters.

    Which weights these are is looked up in all layers before the first one is written.

    Args:
        module: the module.
        task_id: which task.
        dry_run: say what would be reset, and write nothing.
        module_name: in the result's names; None: the class's.
        locked_task_ids: tasks that must not change; None: all trained ones but ``task_id``.

    Warns:
        NoParameterToForgetWarning: locked tasks use every weight of the task.

    Raises:
        IndexError: the task has not trained; nothing is written.
        HATInitializationError: no forward has shown which masks precede a layer.
    """
    maskers = [m for m in module.modules() if isinstance(m, HATMasker)]
    if maskers and not any(task_id in m.trained_task_ids for m in maskers):
        raise IndexError(f"forget_task: task {task_id} has not trained, there is nothing to forget")
    plans: _Plans = {}
    for part in module.modules():
        if isinstance(part, HATMaskedModuleABC) and task_id in part.masker.trained_task_ids:
            locked = part.masker.locked_tasks(task_id, locked_task_ids)
            plans[id(part)] = part.forgettable(task_id, locked)
    name = module_name or type(module).__name__
    options = {"task_id": task_id, "dry_run": dry_run, "locked_task_ids": locked_task_ids}
    with warnings.catch_warnings():
        # One layer that keeps everything is nothing to warn of.
        warnings.filterwarnings("ignore", category=NoParameterToForgetWarning)
        result = _forget(module, name, plans, set(), options)
    weights = [v for k, v in result.items() if k.rsplit(".", 1)[-1] in ("weight", "bias")]
    if not any(bool(v.any()) for v in weights):
        warnings.warn(
            f"forget_task: all weights of task {task_id} are used by locked tasks too",
            NoParameterToForgetWarning,
            stacklevel=2,
        )
    return result


def _forget(
    module: nn.Module, name: str, plans: _Plans, done: set[int], options: dict[str, Any]
) -> ForgetResult:
    if id(module) in done:
        return ForgetResult()
    done.add(id(module))
    if isinstance(module, HATMaskedModuleABC):
        if id(module) not in plans:
            return ForgetResult()
        return module.forget(module_name=name, plan=plans[id(module)], **options)
    if isinstance(module, HATMasker) and options["task_id"] not in module.trained_task_ids:
        return ForgetResult()
    if isinstance(module, TaskDependentModuleABC):
        return module.forget(module_name=name, **options)
    if isinstance(module, TaskIndexedParameter):
        return module.forget(options["task_id"], options["dry_run"], name)
    result = ForgetResult()
    for child_name, child in module.named_children():
        result = result + _forget(child, f"{name}.{child_name}", plans, done, options)
    return result
