"""How much of the free units a task may take: HAT's sparsity term (section 2.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.hat_cl._unit_masker import UnitMasker

STRATEGIES = ("uniform", "paper")


class Regulator:
    """The regularization of one masker.

    Args:
        masker: whose.
    """

    def __init__(self, masker: UnitMasker) -> None:
        self.masker = masker

    @property
    def quota(self) -> float:
        """Units that each task may have: as many as units by tasks."""
        return self.masker.num_features / self.masker.num_tasks

    def get_reg_term(self, strat: str, **kwargs: Any) -> Tensor:
        """The term of one masker.

        Args:
            strat: ``uniform`` or ``paper``, which is ``uniform`` without the quota.
            kwargs: of `get_uniform_reg_term`.

        Raises:
            ValueError: the strategy is unknown.
        """
        check_strategy(strat)
        if strat == "paper":
            kwargs["forgive_quota"] = False
        return self.get_uniform_reg_term(**kwargs)

    def get_uniform_reg_term(
        self,
        task_id: int,
        mask_scale: Any,
        forgive_quota: bool = True,
        locked_task_ids: Sequence[int] | None = None,
    ) -> Tensor:
        """max(0, sum m (1 - u) - quota) / sum (1 - u), u being what locked tasks use; 0-d.

        0, with no gradient, where no unit is free.

        Args:
            task_id: the task that trains.
            mask_scale: of its mask m.
            forgive_quota: take the quota off; else it is 0.
            locked_task_ids: None: all trained tasks but ``task_id``.
        """
        taken, count = self.shares(task_id, mask_scale, locked_task_ids)
        if forgive_quota:
            taken = (taken - self.quota).clamp_min(0)
        return taken / count.clamp_min(1)

    def shares(
        self, task_id: int, mask_scale: Any, locked_task_ids: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Free units that the mask takes, and free units: sum m (1 - u) and sum (1 - u), 0-d."""
        masker = self.masker
        mask = masker.get_mask(task_id, mask_scale)
        free, count = masker.free_units(masker.locked_tasks(task_id, locked_task_ids))
        return torch.dot(mask.to(free.dtype), free), count


def check_strategy(strat: str) -> None:
    """Raise a ValueError where there is no such strategy."""
    if strat not in STRATEGIES:
        raise ValueError(f"strat is {strat!r}, wanted one of {', '.join(STRATEGIES)}")
