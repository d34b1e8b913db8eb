"""Masks in result.json: one bit a unit, as hexadecimal text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_masks(masks: NDArray[np.bool_], layers: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """JSON form of bool[T, U]; ``layers`` gives each layer's (first, past last) unit."""
    return {
        "units": int(masks.shape[1]),
        "layers": {name: list(span) for name, span in layers.items()},
        "tasks": [np.packbits(mask, bitorder="little").tobytes().hex() for mask in masks],
    }


def decode_masks(encoded: dict[str, Any]) -> NDArray[np.bool_]:
    """bool[T, U] from `encode_masks`'s form."""
    rows = [np.frombuffer(bytes.fromhex(text), dtype=np.uint8) for text in encoded["tasks"]]
    bits = np.unpackbits(np.array(rows), axis=1, bitorder="little")
    return bits[:, : encoded["units"]].astype(np.bool_)
