"""Which elements of an optimizer's parameters may not move, as the op ``update`` takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
        self._protection = known
        self._bounds = dict(bounds or {})
        self._ends: dict[int, tuple[Tensor, Tensor, int]] = {}
        if known is not None and not known.empty:
            sides = zip(*known.sides, strict=True)
            self._ends = dict(zip(map(id, known.parameters), sides, strict=True))
        self.check(caller)

    def check(self, caller: str) -> None:
        """Raise unless the network still has the parameters that are protected.

        Raises:
            RuntimeError: the message names one.
        """
        if self._protection is not None:
            self._protection.check_parameters(caller)

    def sides(self, parameters: Sequence[nn.Parameter]) -> Sides:
        """out_tasks, in_tasks, groups and bounds of these; no tasks where nothing is protected."""
        bounds = [self._bounds.get(p, math.inf) for p in parameters]
        if not self._ends:
            return [], [], [1] * len(parameters), bounds
        words = next(out.shape[1] for out, _, _ in self._ends.values())
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
    found = net.protection() if callable(getattr(net, "protection", None)) else net
    if found is not None and not hasattr(found, "out_tasks"):
        raise TypeError(
            f"{caller}: protect is a {type(net).__name__}, wanted a HATNetwork, its protection() or"
            " None"
        )
    return found
