"""The compensation of the embeddings' gradient (Serra et al. 2018, section 2.5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_LARGEST = 80.0
"""cosh of it is finite in float32."""


@torch.no_grad()
def compensate_(
    embeddings: Sequence[nn.Parameter], scale: float, s_max: float, clamp_threshold: float
) -> None:
    """Multiply gradients by (s_max / s) (cosh(clip(s e, -k, k)) + 1) / (cosh(e) + 1), in place.

    Embeddings without a gradient are left alone.

    Args:
        embeddings: e, of any shapes.
        scale: s.
        s_max: largest scale.
        clamp_threshold: k; at most 80 counts, beyond which float32 has no cosh.
    """
    rows = [(e, e.grad) for e in embeddings if e.grad is not None]
    if not rows:
        return
    values: list[Tensor] = [e.detach() for e, _ in rows]
    bound = min(clamp_threshold, _LARGEST)
    factor = list(torch._foreach_mul(values, scale))
    torch._foreach_clamp_max_(factor, bound)
    torch._foreach_clamp_min_(factor, -bound)
    torch._foreach_cosh_(factor)
    torch._foreach_add_(factor, 1.0)
    below = list(torch._foreach_cosh(values))
    torch._foreach_add_(below, 1.0)
    torch._foreach_div_(factor, below)
    torch._foreach_mul_(factor, s_max / scale)
    torch._foreach_mul_([grad for _, grad in rows], factor)
