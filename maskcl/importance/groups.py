"""Samples that are groups of rows: the graphs of a batch, whose rows are their nodes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Groups:
    """Which sample each row of a batch belongs to.

    Args:
        owner: int64 [rows], from 0 to samples - 1.
        samples: how many there are.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """

    def __init__(self, owner: Any, samples: int) -> None:
        if not isinstance(owner, Tensor) or owner.dtype != torch.int64:
            found = owner.dtype if isinstance(owner, Tensor) else type(owner).__name__
            raise TypeError(f"estimate: segments returned {found}, wanted an int64 tensor")
        if owner.dim() != 1:
            raise ValueError(
                f"estimate: segments returned shape {list(owner.shape)}, wanted [rows]"
            )
        self.sizes = torch.bincount(owner.clamp(min=0), minlength=samples)
        if owner.numel() and (int(owner.min()) < 0 or len(self.sizes) > samples):
            raise ValueError(
                f"estimate: segments name samples {int(owner.min())} to {int(owner.max())}, wanted"
                f" 0 to {samples - 1}, as the outputs have {samples} rows"
            )
        self.owner, self.samples = owner, samples
        self.most = int(self.sizes.max()) if samples else 0
        # Where a row stands among those of its sample.
        order = owner.argsort(stable=True)
        starts = self.sizes.cumsum(0) - self.sizes
        self.place = torch.empty_like(owner)
        self.place[order] = torch.arange(len(owner), device=owner.device) - starts[owner[order]]
        self._ambiguous = len(owner) == samples and self.most > 1

    def check_rows(self, found: set[int]) -> None:
        """Raise ValueError unless layers that were given ``found`` rows can be these rows.

        A layer may see the samples themselves, or something else (edges): one sees the rows.
        """
        if found - {self.samples} and len(self.owner) not in found:
            raise ValueError(
                f"estimate: segments returned {len(self.owner)} entries, wanted one for each row,"
                f" and the network's layers were given {' or '.join(map(str, sorted(found)))} rows"
            )

    def owner_of(self, t: Tensor) -> Tensor | None:
        """The sample of each row of a tensor that has a row for each row or each sample."""
        if t.dim() == 0 or (self._ambiguous and t.shape[0] == self.samples):
            return None
        if t.shape[0] == len(self.owner):
            return self.owner
        if t.shape[0] == self.samples:
            return torch.arange(self.samples, device=t.device)
        return None

    def arrange(self, t: Tensor) -> Tensor | None:
        """[samples, most rows of one, *]: by sample, zeros behind; None where it has other rows."""
        owner = self.owner_of(t)
        if owner is None:
            return None
        if owner is not self.owner:
            return t.unsqueeze(1)
        padded = t.new_zeros(self.samples, self.most, *t.shape[1:])
        padded[owner, self.place] = t
        return padded
