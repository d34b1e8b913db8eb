"""Masks of a backbone's masked blocks, which its state_dict has once, as the backbone's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Spans = Mapping[str, slice]


_PARTS = ("embedding_task", "task_bits.", "task_embedding_t.")
"""How the names begin of what a block has of masks."""


def leave_out(state: dict[str, Any], prefix: str, blocks: Mapping[str, Any]) -> None:
    """Take the blocks' masks out of a state_dict.

    Args:
        state: of the backbone.
        prefix: of the backbone's names in it.
        blocks: name of a block -> block.
    """
    for name in blocks:
        begins = tuple(f"{prefix}{name}.{part}" for part in _PARTS)
        for key in [key for key in state if key.startswith(begins)]:
            del state[key]


def put_in(state: dict[str, Any], prefix: str, blocks: Mapping[str, Any], spans: Spans) -> None:
    """Put the blocks' masks into a state_dict that lacks them, from the backbone's own.

    Args:
        state: of the backbone.
        prefix: of the backbone's names in it.
        blocks: name of a block -> block.
        spans: layer -> its units among the backbone's.
    """
    for name, block in blocks.items():
        found: dict[str, Any] = {}
        for key in ("embedding_task", "task_bits.task_ids"):
            found[key] = state.get(prefix + key)
        for layer in block.weighted_layer_names:
            key = f"task_embedding_t.{layer}.weight"
            found[key] = state.get(prefix + key)
        bits = state.get(f"{prefix}task_bits.bits")
        if isinstance(bits, Tensor):
            rows = [bits[spans[layer]] for layer in block.weighted_layer_names]
            found["task_bits.bits"] = torch.cat(rows)
        for key, value in found.items():
            if value is not None:
                state.setdefault(f"{prefix}{name}.{key}", value)
