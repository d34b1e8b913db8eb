"""An optimizer's step of a whole model in one pass, protected elements left as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl.reference.gate import compute_dtype
from maskcl.schemas import fake


@fake("sgd_update_")
def _(params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], *rest: object) -> None:
    return None


@fake("adam_update_")
def _(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *rest: object,
) -> None:
    return None


@fake("unprotected_norm")
def _(grads: list[Tensor], *rest: object) -> Tensor:
    if not grads:
        return torch.zeros(())
    return grads[0].new_empty((), dtype=compute_dtype(grads[0].dtype))
