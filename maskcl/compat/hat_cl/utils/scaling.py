"""Scale of the masks over the progress of training."""

from __future__ import annotations

import math
from typing import Any

from maskcl.compat.hat_cl.constants import (
    DEF_HAT_MAX_TRN_MASK_SCALE,
    DEF_HAT_TRN_MASK_SCALE_STRAT,
)


def get_hat_mask_scale(
    strat: str = DEF_HAT_TRN_MASK_SCALE_STRAT,
    max_trn_mask_scale: float = DEF_HAT_MAX_TRN_MASK_SCALE,
    **kwargs: Any,
) -> float:
    """The scale at ``progress`` in [0, 1], which is batch / (batches - 1), and 1 for one batch.

    Args:
        strat: ``linear``, from ``min_trn_mask_scale`` (default 1 / max) to max, HAT's eq. 3;
            ``exponential``, above 1 for the share ``ratio_greater_than_one`` (default 0.8) of the
            time; ``cosine``, from max down and back up, never below ``min_trn_mask_scale``
            (default 1); ``constant``, max.
        max_trn_mask_scale: the largest scale.
        kwargs: ``progress``, and what is named above. `maskcl.ops.epoch_progress` has the progress
            of a batch.

    Raises:
        ValueError: strat is unknown, or progress outside [0, 1].
    """
    found = {"linear": _linear, "exponential": _exponential, "cosine": _cosine}.get(strat)
    if found is None:
        if strat != "constant":
            raise ValueError(
                f"get_hat_mask_scale: strat is {strat!r}, wanted linear, exponential, cosine or"
                " constant"
            )
        return max_trn_mask_scale
    progress = kwargs.get("progress")
    if progress is not None and not 0 <= progress <= 1:
        raise ValueError(f"get_hat_mask_scale: progress is {progress}, wanted one from 0 to 1")
    return found(max_trn_mask_scale=max_trn_mask_scale, **kwargs)


def _linear(
    progress: float, max_trn_mask_scale: float, min_trn_mask_scale: float | None = None
) -> float:
    low = 1 / max_trn_mask_scale if min_trn_mask_scale is None else min_trn_mask_scale
    # Written so that both ends are exact.
    return low * (1 - progress) + max_trn_mask_scale * progress


def _exponential(
    progress: float, max_trn_mask_scale: float, ratio_greater_than_one: float = 0.8
) -> float:
    base = max_trn_mask_scale ** (1 / ratio_greater_than_one)
    return float(base ** (progress - 1 + ratio_greater_than_one))


def _cosine(progress: float, max_trn_mask_scale: float, min_trn_mask_scale: float = 1) -> float:
    wave = (math.cos(2 * math.pi * progress) + 1) / 2
    return max(max_trn_mask_scale * wave, min_trn_mask_scale)
