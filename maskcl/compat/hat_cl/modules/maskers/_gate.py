"""Masks from attentions, soft with the compensated gradient; and how attentions start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.hat_cl.exceptions import HATInitializationError
from maskcl.ops import hat_gate
from maskcl.ops.gate import mask_floor

INIT_STRATEGIES = ("normal", "dense", "sparse")


def soft_mask(
    attention: Tensor,
    scale: Any,
    gate: Callable[[Tensor], Tensor],
    factor: float | None,
    clamp: float,
) -> Tensor:
    """gate(scale * attention), [U]; a sigmoid below `maskcl.ops.gate.mask_floor` is exactly 0.

    Args:
        attention: [U].
        scale: a number or a 0-d tensor.
        gate: the sigmoid goes through `maskcl.ops.hat_gate`.
        factor: s_max of the gradient's compensation (HAT, section 2.5); None for none.
        clamp: bound on |scale * attention| in it.
    """
    if gate is torch.sigmoid:
        floor = mask_floor(attention.dtype, clamp)
        return hat_gate(attention, scale, max_scale=factor, cosh_clamp=clamp, floor=floor)
    if factor is not None and attention.requires_grad:
        attention = _Compensated.apply(attention, scale, factor, clamp)
    return gate(attention * scale)


class _Compensated(torch.autograd.Function):
    """Identity whose gradient is compensated as section 2.5 says, for gates of one's own."""

    @staticmethod
    def forward(ctx: Any, attention: Tensor, scale: Any, factor: float, clamp: float) -> Tensor:
        ctx.save_for_backward(attention)
        ctx.scale, ctx.factor, ctx.clamp = scale, factor, clamp
        return attention.view_as(attention)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        (attention,) = ctx.saved_tensors
        top = torch.cosh((ctx.scale * attention).clamp(-ctx.clamp, ctx.clamp)) + 1
        bottom = (torch.cosh(attention) + 1) * ctx.scale
        return grad * (ctx.factor * top / bottom), None, None, None


@torch.no_grad()
def start_attention(attention: Tensor, strat: str, num_tasks: int) -> None:
    """Draw a task's attention anew, in place.

    Args:
        attention: [U].
        strat: ``normal`` N(0, 1), ``dense`` all 1, or ``sparse``: N(q, 1) whose mean q opens a unit
            with probability 1 / num_tasks, where units that one task alone uses are likeliest.
        num_tasks: how many tasks share the units.

    Raises:
        HATInitializationError: the strategy is unknown.
    """
    if strat == "normal":
        attention.normal_()
    elif strat == "dense":
        # As hat-cl draws them: what is drawn behind is the same from the same seed.
        attention.normal_(1, 0)
    elif strat == "sparse":
        share = torch.tensor(1 / max(num_tasks, 2), dtype=torch.float64)
        attention.normal_(float(torch.special.ndtri(share)), 1)
    else:
        raise HATInitializationError(
            f"init_strat is {strat!r}, wanted one of {', '.join(INIT_STRATEGIES)}"
        )
