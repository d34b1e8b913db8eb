"""HAT's sparsity term of a whole module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from maskcl.compat.hat_cl._eager import eager
from maskcl.compat.hat_cl.modules import HATMasker
from maskcl.compat.hat_cl.modules.maskers._regulator import check_strategy


@eager
def get_hat_reg_term(module: nn.Module, strat: str, **kwargs: Any) -> Any:
    """The regularization term of all maskers of a module, a 0-d tensor; 0.0 where there is none.

    Args:
        module: the module.
        strat: ``uniform``, the mean of the layers' terms; or ``paper``, HAT's eq. 5: units that the
            mask takes of all the network's free units.
        kwargs: ``task_id``, ``mask_scale``, ``locked_task_ids``, and for ``uniform``
            ``forgive_quota``: see `HATMasker.get_reg_term`.

    Raises:
        ValueError: strat is unknown.
    """
    check_strategy(strat)
    maskers = [m for m in module.modules() if isinstance(m, HATMasker)]
    if not maskers:
        return 0.0
    if strat == "uniform":
        return torch.stack([m.get_reg_term(strat, **kwargs) for m in maskers]).mean()
    kwargs.pop("forgive_quota", None)
    taken, counts = zip(*(m.regulator.shares(**kwargs) for m in maskers), strict=True)
    return torch.stack(taken).sum() / torch.stack(counts).sum().clamp_min(1)
