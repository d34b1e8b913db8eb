"""Every public op on weights [size, size], and the same in careful eager torch.

At size 1 nothing is left but the call: checks, the choice of the backend, the autograd Function.
"""

from __future__ import annotations

from maskcl.bench.case import Case
from maskcl.bench.unit_cases import protection, unit_masks
from maskcl.bench.weight_cases import importances, packed_bits, weight_masks

__all__ = ["SHAPES", "case", "cases"]

SHAPES = (
    "Weights, scores, gradients and importances are [size, size], inputs [batch, size], masks"
    " [size] with 60 % of the units open, 30 % used by an earlier task; images"
    " [batch, size / 16, 14, 14] in channels_last, filters 3x3. All float32."
)
_FAMILIES = (unit_masks, protection, weight_masks, packed_bits, importances)


def case(op: str, size: int = 1, batch: int = 1) -> Case:
    """The case of one op, its tensors drawn anew on the default device.

    Raises:
        KeyError: ``op`` is no public op.
    """
    family = next((family for family in _FAMILIES if op in family(1, 1)), None)
    if family is None:
        raise KeyError(f"{op} is no op of maskcl.ops")
    return family(size, batch)[op]


def cases(size: int = 1, batch: int = 1) -> dict[str, Case]:
    """All public ops' cases."""
    return {op: made for family in _FAMILIES for op, made in family(size, batch).items()}
