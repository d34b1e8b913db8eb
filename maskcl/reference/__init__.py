"""The specification: every low-level op in plain torch, readable before fast.

Each file holds one stem. The functions have the names and signatures of the schemas in
:mod:`maskcl.schemas`; the other backends are tested against them.
"""

from maskcl.reference import (
    bitmask,
    gate,
    grad_clamp,
    importance,
    masked_forward,
    masked_products,
    open_products,
    update,
    weight_mask,
)

__all__ = [
    "bitmask",
    "gate",
    "grad_clamp",
    "importance",
    "masked_forward",
    "masked_products",
    "open_products",
    "update",
    "weight_mask",
]
