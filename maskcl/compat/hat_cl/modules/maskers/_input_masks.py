"""Which masks a layer's inputs come under, and so which tasks use each input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskcl.compat.hat_cl._unit_masker import UnitMasker
from maskcl.compat.hat_cl.layout import Index, Layout, feature_units
from maskcl.compat.hat_cl.modules.maskers._task_words import only
from maskcl.compat.hat_cl.payload import HATPayload


@dataclass(frozen=True)
class Feed:
    """Where the inputs of a layer get their mask.

    Attributes:
        masker: whose units reach the input; None: no mask, every task uses every input.
        units: its unit behind each input, int64 [I]; None: one by one.
    """

    masker: UnitMasker | None
    units: Index | None = None

    def words(self, tasks: tuple[int, ...]) -> Tensor | None:
        """int64 [I, W], or None for every task."""
        if self.masker is None:
            return None
        words = self.masker.words(tasks)
        if self.units is None:
            return words
        return words[torch.from_numpy(self.units).to(words.device)]

    def same(self, other: Feed) -> bool:
        """Whether it says the same."""
        if self.masker is not other.masker or (self.units is None) != (other.units is None):
            return False
        if self.units is None or other.units is None:
            return True
        return np.array_equal(self.units, other.units)


@dataclass
class Feeds:
    """All that has fed a layer so far, and what a checkpoint says of it until then.

    Attributes:
        known: without repetition.
        saved: int64 [I, W], or [1, W] of -1 for every task; None: nothing is known from there.
    """

    known: list[Feed] = field(default_factory=list)
    saved: Tensor | None = None
    _seen: set[Any] = field(default_factory=set)

    def add(self, pld: HATPayload, shape: torch.Size, feature_dim: int) -> None:
        """Remember that ``pld``, of data of ``shape``, came in, inputs along ``feature_dim``."""
        masker, layout = pld.masker, pld.layout
        feature_dim %= len(shape)
        # Without ops the layout's other sizes do not matter, and they may differ at every call.
        where = layout if layout is None or layout.ops or layout.mixed else layout.dim
        key = (None if masker is None else id(masker), where, shape[feature_dim], feature_dim)
        if key in self._seen:
            return
        feed = _feed(masker, layout, shape[feature_dim], feature_dim)
        self._seen.add(key)
        if not any(feed.same(other) for other in self.known):
            self.known.append(feed)
        self.saved = None

    def words(self, tasks: tuple[int, ...]) -> Tensor | None:
        """int64 [I, W] of ``tasks``, or None where every task uses every input.

        Raises:
            LookupError: nothing is known yet.
        """
        if not self.known:
            if self.saved is None:
                raise LookupError
            return None if self.saved.shape[0] == 1 else only(self.saved, tasks)
        found: Tensor | None = None
        for feed in self.known:
            words = feed.words(tasks)
            if words is None:
                return None
            found = words if found is None else found | words
        return found

    def __getstate__(self) -> dict[str, Any]:
        # The ids of another process's objects say nothing; what they told is in `known`.
        return {"known": self.known, "saved": self.saved, "_seen": set()}


def _feed(masker: UnitMasker | None, layout: Layout | None, inputs: int, feature_dim: int) -> Feed:
    if masker is None:
        return Feed(None)
    units = masker.num_features
    if layout is not None and layout.ops:
        found = feature_units(layout, feature_dim)
        return Feed(None) if found is None else Feed(masker, found)
    if layout is not None:
        fits = not layout.mixed and layout.dim == feature_dim and inputs == units
        return Feed(masker) if fits else Feed(None)
    # A payload made by hand: as many inputs as units, or a flattened image of so many channels.
    if inputs == units:
        return Feed(masker)
    if inputs % units == 0 and masker.mask_dim in (None, 1):
        return Feed(masker, np.arange(units, dtype=np.int64).repeat(inputs // units))
    return Feed(None)
