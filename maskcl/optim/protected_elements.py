"""Which elements of an optimizer's parameters may not move, as the op ``update`` takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from maskcl.nn import Protection

Sides = tuple[list[Tensor], list[Tensor], list[int], list[float]]


class ProtectedElements:
    """The task bits of both ends of each parameter, and the bounds that it stays in.

    Args:
        caller: named in errors.
        known: the network's, taken as it is now; None where nothing is protected.
        protection: "exact" or "min".
        bounds: by parameter, the largest magnitude after a step; infinite for all others.

    Raises:
        ValueError: protection is neither.
        RuntimeError: the network no longer has the parameters that are protected.
    """

    def __init__(
        self,
        caller: str,
        known: Protection | None,
        protection: str = "exact",
        bounds: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        if protection not in ("exact", "min"):
            raise ValueError(f"{caller}: protection is {protection!r}, wanted 'exact' or 'min'")
        self.exact = protection == "exact"
        self._known = [] if known is None else [known]
        self._bounds = dict(bounds or {})
        self._ends: dict[int, tuple[Tensor, Tensor, int]] = {}
        if known is not None and not known.empty:
            sides = zip(*known.sides, strict=True)
            self._ends = dict(zip(map(id, known.parameters), sides, strict=True))
        self.check(caller)

    def beside(
        self, other: ProtectedElements, parameters: Sequence[nn.Parameter]
    ) -> ProtectedElements:
        """These, and what another one protects of parameters that these know nothing of.

        Args:
            other: of the optimizer's step before.
            parameters: that the optimizer holds.

        Raises:
            ValueError: protection is "exact" of the one and "min" of the other.
        """
        mine = {id(p) for known in self._known for p in known.parameters}
        held = set(map(id, parameters)) - mine
        left = {key: ends for key, ends in other._ends.items() if key in held}
        if not left:
            return self
        if self._known and other.exact != self.exact:
            raise ValueError(
                "protect: protection is 'exact' here and 'min' where other parameters of the"
                " optimizer are protected, or the other way around, wanted one of both"
            )
        both = copy(self)
        both.exact = other.exact
        both._known = [*self._known, *other._known]
        both._bounds = {**other._bounds, **self._bounds}
        both._ends = {**left, **self._ends}
        return both

    def check(self, caller: str) -> None:
        """Raise unless the network still has the parameters that are protected.

        Raises:
            RuntimeError: the message names one.
        """
        for known in self._known:
            known.check_parameters(caller)

    def sides(self, parameters: Sequence[nn.Parameter]) -> Sides:
        """out_tasks, in_tasks, groups and bounds of these; no tasks where nothing is protected."""
        bounds = [self._bounds.get(p, math.inf) for p in parameters]
        if not self._ends:
            return [], [], [1] * len(parameters), bounds
        words = max(out.shape[1] for out, _, _ in self._ends.values())
        free: dict[torch.device, Tensor] = {}
        found = []
        for p in parameters:
            if p.device not in free:
                free[p.device] = torch.zeros(1, words, dtype=torch.int64, device=p.device)
            none = free[p.device]
            found.append(self._ends.get(id(p), (none, none, 1)))
        outs, ins, groups = zip(*found, strict=True)
        return list(outs), list(ins), list(groups), bounds


def protection_of(caller: str, net: Any) -> Protection | None:
    """What ``protect`` stands for: a network's protection as it is now, one, or none.

    Raises:
        TypeError: it is none of these.
    """
    has_one = callable(getattr(net, "protection", None)) and not isinstance(net, type)
    found = net.protection() if has_one else net
    if found is not None and (isinstance(found, type) or not hasattr(found, "out_tasks")):
        what = f"the class {net.__name__}" if isinstance(net, type) else f"a {type(net).__name__}"
        raise TypeError(
            f"{caller}: protect is {what}, wanted a HATNetwork, its protection() or None"
        )
    return found
