"""Which channels stay: numbers for channels, and rules that say which must stay with which.

Every rule only ever keeps more, so applying all of them until nothing changes gives the smallest
set of channels that satisfies them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

EVERY = 0
"""Label of what always stays."""

Rule = Callable[[Tensor], None]


class Labels:
    """Hands out labels and solves the rules between them.

    An axis is an int64 vector, the label of each channel along one dimension of a tensor; None
    stands for a dimension that stays as it is.
    """

    def __init__(self) -> None:
        self.count = EVERY + 1
        self.rules: list[Rule] = []
        # These choose between channels, so they come in where all others have nothing to say.
        self.choices: list[Rule] = []

    def fresh(self, size: int) -> Tensor:
        """An axis of new labels."""
        start = self.count
        self.count += size
        return torch.arange(start, self.count)

    def pin(self, axis: Tensor | None) -> None:
        """All of an axis stays."""
        if axis is not None:
            self.rules.append(lambda kept: _keep(kept, axis))

    def at_least_one(self, axis: Tensor) -> None:
        """An axis is never left empty: torch has no layers without channels."""

        def rule(kept: Tensor) -> None:
            if not kept[axis].any():
                kept[axis[0]] = True

        self.choices.append(rule)

    def same(self, one: Tensor | None, other: Tensor | None) -> None:
        """Two axes keep the same channels."""
        if one is other:
            return
        if one is None or other is None:
            self.pin(one if other is None else other)
            return

        def rule(kept: Tensor) -> None:
            either = kept[one] | kept[other]
            _keep(kept, one[either])
            _keep(kept, other[either])

        self.rules.append(rule)

    def grid(self, elements: Tensor, axes: Mapping[int, Tensor]) -> None:
        """Elements labelled on their own are those of a tensor whose dimensions are labelled.

        Args:
            elements: int64, of full size along the dimensions in ``axes``, else 1.
            axes: by dimension. An element stays exactly where all of its axes' channels do.
        """

        def rule(kept: Tensor) -> None:
            inside = kept[elements]
            for dim, axis in axes.items():
                rows = inside.movedim(dim, 0).reshape(len(axis), -1)
                _keep(kept, axis[rows.any(1)])
            whole = torch.ones_like(inside)
            for dim, axis in axes.items():
                whole &= along(kept[axis], dim, elements.dim())
            _keep(kept, elements[whole])

        self.rules.append(rule)

    def solve(self) -> Tensor:
        """What stays, bool by label."""
        kept = torch.zeros(self.count, dtype=torch.bool)
        kept[EVERY] = True
        self._settle(kept)
        before = -1
        while before != (before := int(kept.sum())):
            for rule in reversed(self.choices):
                if _changes(rule, kept):
                    self._settle(kept)
        return kept

    def _settle(self, kept: Tensor) -> None:
        """Apply the rules until nothing changes."""
        before = -1
        # What is needed travels from the outputs to the inputs, what is tied both ways.
        while before != (before := int(kept.sum())):
            for rule in (*reversed(self.rules), *self.rules):
                rule(kept)


def _changes(rule: Rule, kept: Tensor) -> bool:
    before = int(kept.sum())
    rule(kept)
    return int(kept.sum()) != before


def along(vector: Tensor, dim: int, rank: int) -> Tensor:
    """A vector as a tensor of ``rank`` dimensions that changes along ``dim`` only."""
    sizes = [1] * rank
    sizes[dim] = -1
    return vector.view(sizes)


def _keep(kept: Tensor, labels: Tensor) -> None:
    kept[labels] = True
