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
        self._by_parameter: dict[int, tuple[Tensor, Tensor, int, float]] = {}
        self._kept: dict[tuple[int, ...], Sides] = {}
        self.check(caller)

    def check(self, caller: str) -> None:
        """Raise unless the network still has the parameters that are protected.

        Raises:
            RuntimeError: the message names one.
        """
        if self._protection is not None:
            self._protection.check_parameters(caller)

    def hold(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make ready for steps of these parameters and no others."""
        known = self._protection
        ends: dict[int, tuple[Tensor, Tensor, int]] = {}
        if known is not None and not known.empty:
            ends = {
                id(p): (out, into, groups)
                for p, out, into, groups in zip(
                    known.parameters, known.out_tasks, known.in_tasks, known.groups, strict=True
                )
            }
        words = next((out.shape[1] for out, _, _ in ends.values()), 1)
        free: dict[torch.device, Tensor] = {}
        self._by_parameter, self._kept = {}, {}
        for p in parameters:
            none = free.setdefault(
                p.device, torch.zeros(1, words, dtype=torch.int64, device=p.device)
            )
            out, into, groups = ends.get(id(p), (none, none, 1))
            self._by_parameter[id(p)] = out, into, groups, self._bounds.get(p, math.inf)

    def sides(self, parameters: Sequence[nn.Parameter]) -> Sides:
        """out_tasks, in_tasks, groups and bounds of these parameters; kept for the next step."""
        names = tuple(map(id, parameters))
        if names not in self._kept:
            found = [self._by_parameter[name] for name in names]
            outs, ins, groups, bounds = zip(*found, strict=True)
            self._kept[names] = list(outs), list(ins), list(groups), list(bounds)
        return self._kept[names]


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
