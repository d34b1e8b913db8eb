"""Rules between channels: what they keep, and how often they are asked."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from maskcl.export.kept_channels import EVERY, Labels


def test_what_is_tied_stays_together_and_what_nothing_needs_goes() -> None:
    labels = Labels()
    a, b, c = labels.fresh(4), labels.fresh(4), labels.fresh(3)
    labels.same(a, b)
    labels.pin(b[:2])
    kept = labels.solve()
    assert kept[a].tolist() == kept[b].tolist() == [True, True, False, False]
    assert bool(kept[EVERY]) and not kept[c].any()
    labels.at_least_one(c)
    assert labels.solve()[c].tolist() == [True, False, False]


def test_an_element_stays_where_all_of_its_axes_do() -> None:
    labels = Labels()
    rows, columns, elements = labels.fresh(2), labels.fresh(3), labels.fresh(6).view(1, 2, 3)
    labels.grid(elements, {1: rows, 2: columns})
    labels.pin(elements[0, 1, :1].flatten())
    kept = labels.solve()
    assert kept[rows].tolist() == [False, True] and kept[columns].tolist() == [True, False, False]
    labels.pin(elements[0, 0, 2:].flatten())
    kept = labels.solve()
    assert kept[rows].all() and kept[columns].tolist() == [True, False, True]
    assert kept[elements][0].tolist() == [[True, False, True]] * 2


def test_a_rule_is_asked_again_only_where_something_of_its_own_changed() -> None:
    labels = Labels()
    axes = [labels.fresh(3) for _ in range(50)]
    asked = [0] * 50

    def watched(place: int) -> None:
        def rule(kept: Tensor) -> None:
            asked[place] += 1

        labels.rule(rule, axes[place])

    for place in range(50):
        watched(place)
    for one, other in itertools.pairwise(axes[:10]):
        labels.same(one, other)
    labels.pin(axes[0])
    kept = labels.solve()
    assert torch.cat([kept[axis] for axis in axes[:10]]).all()
    assert not any(bool(kept[axis].any()) for axis in axes[10:])
    assert set(asked[10:]) == {1} and max(asked[:10]) <= 3
