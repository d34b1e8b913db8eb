"""Which tasks use each unit, as words of bits: bit k % 64 of word k // 64 for task k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

WORD = 64


def pack(masks: dict[int, Tensor], units: int, num_tasks: int, device: Any) -> Tensor:
    """int64 [units, W] of the tasks' masks, bool [units] each."""
    words = torch.zeros(units, -(-num_tasks // WORD), dtype=torch.int64, device=device)
    for task, mask in masks.items():
        words[:, task // WORD] |= mask.to(torch.int64) << (task % WORD)
    return words


def only(words: Tensor, tasks: Sequence[int]) -> Tensor:
    """The same with the bits of ``tasks`` alone."""
    kept = [0] * words.shape[1]
    for task in tasks:
        kept[task // WORD] |= 1 << (task % WORD)
    signed = [k - (1 << WORD) if k >= 1 << (WORD - 1) else k for k in kept]
    return words & words.new_tensor(signed)


def any_task(words: Tensor, tasks: Sequence[int]) -> Tensor:
    """Whether any of ``tasks`` uses it, bool [units]."""
    return (only(words, tasks) != 0).any(-1)
