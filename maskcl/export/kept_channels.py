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
        self._starts = [EVERY]
        self._rules: list[_Known] = []
        self._choices: list[_Known] = []

    def fresh(self, size: int) -> Tensor:
        """An axis of new labels."""
        start = self.count
        self.count += size
        self._starts.append(start)
        return torch.arange(start, self.count)

    def rule(self, rule: Rule, *labels: Tensor) -> None:
        """A rule that reads and writes these labels alone."""
        self._rules.append((rule, labels))

    def choice(self, rule: Rule, *labels: Tensor) -> None:
        """A rule that chooses between channels: it comes in where all others have had their say."""
        self._choices.append((rule, labels))

    def pin(self, axis: Tensor | None) -> None:
        """All of an axis stays."""
        if axis is not None:
            self.rule(lambda kept: _keep(kept, axis), axis)

    def at_least_one(self, axis: Tensor) -> None:
        """An axis is never left empty: torch has no layers without channels."""

        def rule(kept: Tensor) -> None:
            if not kept[axis].any():
                kept[axis[0]] = True

        self.choice(rule, axis)

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

        self.rule(rule, one, other)

    def grid(self, elements: Tensor, axes: Mapping[int, Tensor]) -> None:
        """Elements labelled on their own are those of a tensor whose dimensions are labelled.

        Args:
            elements: int64, of full size along the dimensions in ``axes``, else 1.
            axes: by dimension. An element stays exactly where all of its axes' channels do.
        """
        others = {dim: [d for d in range(elements.dim()) if d != dim] for dim in axes}

        def rule(kept: Tensor) -> None:
            inside = kept[elements]
            for dim, axis in axes.items():
                _keep(kept, axis[inside.any(others[dim])] if others[dim] else axis[inside])
            whole = torch.ones_like(inside)
            for dim, axis in axes.items():
                whole &= along(kept[axis], dim, elements.dim())
            if not torch.equal(whole, inside):
                _keep(kept, elements[whole])

        self.rule(rule, elements, *axes.values())

    def solve(self) -> Tensor:
        """What stays, bool by label."""
        kept = torch.zeros(self.count, dtype=torch.bool)
        kept[EVERY] = True
        blocks = _Blocks(kept, self._starts)
        rules = [_Watched(rule, blocks.of(labels)) for rule, labels in self._rules]
        choices = [_Watched(rule, blocks.of(labels)) for rule, labels in self._choices]
        _settle(rules, blocks)
        changed = True
        while changed:
            changed = False
            for choice in reversed(choices):
                if blocks.run(choice):
                    _settle(rules, blocks)
                    changed = True
        return kept


_Known = tuple[Rule, tuple[Tensor, ...]]


class _Watched:
    """A rule, the blocks of labels that it touches, and when it was run last."""

    def __init__(self, rule: Rule, blocks: list[int]) -> None:
        self.rule, self.blocks, self.seen = rule, blocks, -1


class _Blocks:
    """What stays, in the blocks in which labels were handed out: which changed, and when.

    There may be a label for each element of a tensor, so that no step looks at all of them.
    """

    def __init__(self, kept: Tensor, starts: list[int]) -> None:
        self.kept = kept
        self._starts = torch.tensor(starts)
        self._parts = kept.tensor_split(self._starts[1:])
        self._counts = [int(torch.count_nonzero(part)) for part in self._parts]
        self._changed = [0] * len(starts)
        self._time = 0

    def of(self, labels: tuple[Tensor, ...]) -> list[int]:
        """Numbers of the blocks that these labels are in."""
        found: set[int] = set()
        for part in labels:
            places = torch.bucketize(part.flatten(), self._starts, right=True) - 1
            found.update(torch.bincount(places).nonzero().flatten().tolist())
        return sorted(found)

    def has_news(self, watched: _Watched) -> bool:
        """Whether anything that a rule touches changed since it was run last."""
        return any(self._changed[block] > watched.seen for block in watched.blocks)

    def run(self, watched: _Watched) -> bool:
        """Run a rule; whether it changed anything."""
        watched.rule(self.kept)
        self._time += 1
        changed = False
        for block in watched.blocks:
            count = int(torch.count_nonzero(self._parts[block]))
            if count != self._counts[block]:
                self._counts[block], self._changed[block] = count, self._time
                changed = True
        watched.seen = self._time - changed  # its own changes may be news to it
        return changed


def _settle(rules: list[_Watched], blocks: _Blocks) -> None:
    """Apply the rules until nothing changes."""
    # What is needed travels from the outputs to the inputs, what is tied both ways.
    order = [*reversed(rules), *rules]
    while any(map(blocks.has_news, rules)):
        for watched in order:
            if blocks.has_news(watched):
                blocks.run(watched)


def along(vector: Tensor, dim: int, rank: int) -> Tensor:
    """A vector as a tensor of ``rank`` dimensions that changes along ``dim`` only."""
    sizes = [1] * rank
    sizes[dim] = -1
    return vector.view(sizes)


def _keep(kept: Tensor, labels: Tensor) -> None:
    kept[labels] = True
