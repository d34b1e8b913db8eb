"""How many units each task uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from maskcl.compat.hat_cl.modules import HATMasker

Utility = dict[str, dict[int, tuple[int, int]]]


@torch.no_grad()
def hat_util(module: nn.Module, task_ids: int | Sequence[int] | None = None) -> Utility:
    """By masker and task, units that the task uses and units in all.

    Args:
        module: the module.
        task_ids: which tasks; None: those that have trained.

    Raises:
        ValueError: a task has not trained.
    """
    wanted = [task_ids] if isinstance(task_ids, int) else task_ids
    found: Utility = {}
    for name, masker in module.named_modules():
        if not isinstance(masker, HATMasker):
            continue
        trained = masker.trained_task_ids
        for task in trained if wanted is None else wanted:
            if task not in trained:
                raise ValueError(f"get_hat_util: task {task} has not trained in {name}")
        found[name] = {
            k: (int(masker.get_binary_mask(k).sum()), masker.num_features)
            for k in (trained if wanted is None else wanted)
        }
    return found


def get_hat_util(module: nn.Module, task_ids: int | Sequence[int] | None = None) -> Any:
    """`hat_util` as a ``pandas.DataFrame``: rows maskers, columns tasks.

    Args:
        module: the module.
        task_ids: which tasks; None: those that have trained.

    Raises:
        ImportError: pandas is not installed.
        ValueError: a task has not trained.
    """
    found = hat_util(module, task_ids)
    try:
        import pandas  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ImportError(
            "get_hat_util returns a pandas.DataFrame: pip install pandas, or call"
            " utils.inspection.hat_util, which returns a dict"
        ) from error
    return pandas.DataFrame.from_dict(found, orient="index")
