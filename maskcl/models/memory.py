"""A model that this machine can hold, or a sentence instead of a killed process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def within_memory(make: Callable[[], Model]) -> Model:
    """What ``make`` makes, after its size is known.

    Args:
        make: draws weights; called twice, the first time on torch's meta device, where nothing is
            allocated or drawn.

    Raises:
        ValueError: the parameters alone are more than this machine's memory.
    """
    try:
        with torch.device("meta"):
            size = sum(p.numel() * p.element_size() for p in make().parameters())
    except (RuntimeError, OverflowError):  # torch counts bytes in 63 bits
        raise ValueError("the model is larger than any memory: its widths are too large") from None
    held = _memory()
    if size > held:
        raise ValueError(
            f"the model's parameters take {size / 1e9:,.1f} GB, this machine has"
            f" {held / 1e9:,.1f} GB of memory"
        )
    return make()


def _memory() -> float:
    """Bytes of the machine, or of the container; infinite where the system does not say."""
    found = float("inf")
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        return min(found, float(_CGROUP.read_text()))
    except (OSError, ValueError):  # none, or "max"
        return found
