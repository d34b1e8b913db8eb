"""Keeping one task only."""

from __future__ import annotations

import warnings
from copy import deepcopy

from torch import nn

from maskcl.compat.hat_cl.exceptions import NoParameterToForgetWarning
from maskcl.compat.hat_cl.modules import HATMasker
from maskcl.compat.hat_cl.types_ import ForgetResult
from maskcl.compat.hat_cl.utils.forgetting import forget_task


def prune_hat_module(module: nn.Module, task_id: int) -> tuple[nn.Module, ForgetResult]:
    """A copy that has forgotten all tasks but one, and what it forgot.

    Args:
        module: the module; it stays as it is.
        task_id: the task to keep.

    Raises:
        ValueError: the module has no masker, or the task has not trained.
    """
    maskers = [m for m in module.modules() if isinstance(m, HATMasker)]
    trained = sorted({k for m in maskers for k in m.trained_task_ids})
    if task_id not in trained:
        found = f"tasks {trained} have trained" if maskers else "the module has no HATMasker"
        raise ValueError(f"prune_hat_module: task_id is {task_id}, but {found}")
    pruned = deepcopy(module)
    result = ForgetResult()
    for other in trained:
        if other == task_id:
            continue
        with warnings.catch_warnings():
            # A task within the kept one has nothing of its own.
            warnings.filterwarnings("ignore", category=NoParameterToForgetWarning)
            result = result + forget_task(pruned, other, locked_task_ids=[task_id])
    return pruned, result
