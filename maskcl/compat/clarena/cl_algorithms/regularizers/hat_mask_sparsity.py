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
        """(the term, by layer its share without a gradient).

        A share is 0 where no unit is free (or, of "cross", where none is in use).

        Args:
            mask: layer -> [units], of the current task.
            previous_cumulative_mask: layer -> [units], what stored tasks use.
        """
        used = torch.cat([previous_cumulative_mask[name] for name in mask])
        shares = self.shares(mask, previous_cumulative_mask)
        return self.term(torch.cat(list(mask.values())), used), shares

    def term(self, mask: Tensor, used: Tensor) -> Tensor:
        """The term alone, of all layers' units: [U] and [U]."""
        return self.factor * self._share(mask, used, True)

    @torch.no_grad()
    def shares(
        self, mask: Mapping[str, Tensor], previous_cumulative_mask: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The layers' shares alone."""
        return {n: self._share(mask[n], previous_cumulative_mask[n], False) for n in mask}

    def _share(self, mask: Tensor, used: Tensor, loss: bool) -> Tensor:
        free = hat_sparsity(mask, used)
        if self.mode == "original":
            return free
        # Eq. 5 with the parts of free and used units exchanged.
        taken = hat_sparsity(mask, 1 - used)
        if loss:
            taken = (1 - taken) * used.any()
        return (free + taken) / 2
