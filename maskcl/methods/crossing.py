"""Whether a score can get to where its weight's mask changes, told before the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer


def gap(scores: Sequence[Tensor], levels: str, threshold: float) -> float:
    """The least distance of any score from where its mask changes; one wait for the device.

    0 for ``topk``, which compares scores with each other, and where there are no scores.
    """
    if levels == "topk" or not scores:
        return 0.0
    least = []
    for score in scores:
        s = score.detach()
        distance = (s.abs() - threshold if levels == "ternary_symmetric" else s - threshold).abs()
        if levels == "ternary":  # the original's also changes at 0
            distance = torch.minimum(distance, s.abs())
        least.append(distance.min().double())
    return float(torch.stack(least).min())


def reach(optimizer: Optimizer, groups: list[dict[str, Any]], steps: int) -> float | None:
    """About how far ``steps`` steps move a parameter of these groups at most; None: no telling.

    Adam moves a parameter by about its rate a step, whatever the size of the gradient: by exactly
    that where gradients are steady, by less where they change sign, and in one step after
    gradients of 0 by rate (1 - b1) / sqrt(1 - b2), 3.2 times it (Kingma and Ba 2015, section 2.1).
    SGD's step is as long as its gradient.
    """
    if not isinstance(optimizer, (Adam, AdamW)):
        return None
    return max((float(group["lr"]) for group in groups), default=0.0) * steps
