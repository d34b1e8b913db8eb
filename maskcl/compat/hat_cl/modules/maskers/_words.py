"""Which tasks use each unit, as words of bits: bit k % 64 of word k // 64 for task k."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from maskcl.compat.hat_cl.layout import Index, Layout, feature_units

if TYPE_CHECKING:
    from maskcl.compat.hat_cl.modules.maskers.hat_masker import HATMasker
    from maskcl.compat.hat_cl.payload import HATPayload

WORD = 64


def pack(masks: dict[int, Tensor], units: int, num_tasks: int, device: Any) -> Tensor:
    """int64 [units, W] of the tasks' masks, bool [units] each."""
    words = torch.zeros(units, -(-num_tasks // WORD), dtype=torch.int64, device=device)
    for task, mask in masks.items():
        words[:, task // WORD] |= mask.to(torch.int64) << (task % WORD)
    return words


def only(words: Tensor, tasks: Sequence[int]) -> Tensor:
    """The same with the bits of ``tasks`` alone."""
    kept = [0] * words.shape[1]
    for task in tasks:
        kept[task // WORD] |= 1 << (task % WORD)
    signed = [k - (1 << WORD) if k >= 1 << (WORD - 1) else k for k in kept]
    return words & words.new_tensor(signed)


def any_task(words: Tensor, tasks: Sequence[int]) -> Tensor:
    """Whether any of ``tasks`` uses it, bool [units]."""
    return (only(words, tasks) != 0).any(-1)


@dataclass(frozen=True)
class Feed:
    """Where the inputs of a layer get their mask.

    Attributes:
        masker: whose units reach the input; None: no mask, every task uses every input.
        units: its unit behind each input, int64 [I]; None: one by one.
    """

    masker: HATMasker | None
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


def _feed(masker: HATMasker | None, layout: Layout | None, inputs: int, feature_dim: int) -> Feed:
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


class Cache:
    """Values that follow from tensors, kept until one of these is written or replaced."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: dict[Any, tuple[list[tuple[Tensor, int]], Any]] = {}

    def get(self, key: Any, tensors: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What ``make`` returned for ``key``, as long as ``tensors`` are what they were."""
        if any(t.is_inference() for t in tensors):
            return make()  # whether these are written cannot be seen
        found = self._kept.get(key)
        if found is not None and len(found[0]) == len(tensors):
            pairs = zip(found[0], tensors, strict=True)
            if all(t is now and version == now._version for (t, version), now in pairs):
                return found[1]
        # What inference mode makes could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        self._kept.pop(key, None)
        while len(self._kept) >= self._size:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = ([(t, t._version) for t in tensors], value)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __deepcopy__(self, memo: Any) -> Cache:
        return Cache(self._size)

    def __getstate__(self) -> dict[str, Any]:
        return {"_size": self._size, "_kept": {}}
