"""HAT's term for masks that leave units free (Serra et al. 2018, section 2.6)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from maskcl.compat.clarena.checks import check_number
from maskcl.ops import hat_sparsity

__all__ = ["HATMaskSparsityReg"]

MODES = ("original", "cross")


class HATMaskSparsityReg(nn.Module):
    """Share of the free units that a mask takes (eq. 5), times a factor.

    Args:
        factor: c of the paper, at least 0.
        mode: "original", eq. 5; "cross", the mean of eq. 5 and of the share of the units in use
            that the mask does not take.

    Raises:
        ValueError: factor or mode is not as above.
    """

    def __init__(self, factor: float, mode: str = "original") -> None:
        super().__init__()
        if mode not in MODES:
            wanted = " or ".join(map(repr, MODES))
            raise ValueError(f"HATMaskSparsityReg: mode is {mode!r}, wanted {wanted}")
        check_number("HATMaskSparsityReg: factor", factor, 0)
        self.factor = factor
        self.mode = mode

    def forward(
        self, mask: Mapping[str, Tensor], previous_cumulative_mask: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`original_reg` or `cross_reg`, whichever the mode says."""
        reg = self.original_reg if self.mode == "original" else self.cross_reg
        return reg(mask, previous_cumulative_mask)

    def original_reg(
        self, mask: Mapping[str, Tensor], previous_cumulative_mask: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(eq. 5 times the factor, by layer its share without a gradient), whatever the mode.

        A share is 0 where no unit is free.

        Args:
            mask: layer -> [units], of the current task.
            previous_cumulative_mask: layer -> [units], what stored tasks use.
        """
        return self._both(mask, previous_cumulative_mask, "original")

    def cross_reg(
        self, mask: Mapping[str, Tensor], previous_cumulative_mask: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(the term of mode "cross" times the factor, by layer its share), whatever the mode.

        A layer's share is the mean of those of its free units and of its units in use that the mask
        takes, each 0 where there is none, and has no gradient.

        Args:
            mask: layer -> [units], of the current task.
            previous_cumulative_mask: layer -> [units], what stored tasks use.
        """
        return self._both(mask, previous_cumulative_mask, "cross")

    def _both(
        self, mask: Mapping[str, Tensor], used: Mapping[str, Tensor], mode: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        joined = torch.cat([used[name] for name in mask])
        term = self.factor * _share(torch.cat(list(mask.values())), joined, mode, True)
        return term, _shares(mask, used, mode)

    def term(self, mask: Tensor, used: Tensor) -> Tensor:
        """The term alone, of all layers' units: [U] and [U]."""
        return self.factor * _share(mask, used, self.mode, True)

    def shares(
        self, mask: Mapping[str, Tensor], previous_cumulative_mask: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The layers' shares alone."""
        return _shares(mask, previous_cumulative_mask, self.mode)


@torch.no_grad()
def _shares(mask: Mapping[str, Tensor], used: Mapping[str, Tensor], mode: str) -> dict[str, Tensor]:
    return {name: _share(mask[name], used[name], mode, False) for name in mask}


def _share(mask: Tensor, used: Tensor, mode: str, loss: bool) -> Tensor:
    free = hat_sparsity(mask, used)
    if mode == "original":
        return free
    # Eq. 5 with the parts of free and used units exchanged.
    taken = hat_sparsity(mask, 1 - used)
    if loss:
        taken = (1 - taken) * used.any()
    return (free + taken) / 2
