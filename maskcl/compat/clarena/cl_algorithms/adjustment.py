"""How a step's gradients are adjusted: on the kernels, and as rates to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from maskcl import backends
from maskcl.compat.clarena.backbones.protection import LayerProtection
from maskcl.reference.grad_clamp import popcount

SCALE = "scale"
"""Rule that multiplies whole gradients; the others are ``maskcl.ops.clamp_grads_``'s."""


@dataclass(frozen=True)
class Adjustment:
    """What happens to the gradients of a backbone in one step.

    Attributes:
        protection: which tasks use each end of the weights, as they were at this step.
        rule: "hat", "const", "random", "adahat" or "scale".
        values: of "const", "adahat" and "scale", one a parameter.
        exact: count the tasks that use both ends of a weight, else the smaller of both counts.
        seed: of "random".
        counts: as `user_counts` gives them.
    """

    protection: LayerProtection
    rule: str
    values: list[float]
    exact: bool
    seed: int
    counts: list[list[int]]

    @torch.no_grad()
    def apply_(self) -> None:
        """Adjust the parameters' gradients, in place and in one call; None is left alone."""
        if self.rule == "const" and all(value == 1 for value in self.values):
            return
        grads = [p.grad for p in self.protection.parameters]
        self._run({i: grad for i, grad in enumerate(grads) if grad is not None})

    def _run(self, tensors: dict[int, Tensor]) -> None:
        if not tensors:
            return
        rows, grads = list(tensors), list(tensors.values())
        values = [self.values[i] for i in rows]
        if self.rule == SCALE:
            torch._foreach_mul_(grads, values)
        elif not self.protection.empty:
            p = self.protection
            sides = [[side[i] for i in rows] for side in (p.out_tasks, p.in_tasks)]
            groups = [p.groups[i] for i in rows]
            run = backends.select("clamp_grads_", grads[0])
            run(grads, *sides, groups, self.exact, self.rule, values, self.seed)

    @torch.no_grad()
    def rates(self) -> list[Tensor]:
        """The factor of every element of every parameter: what the kernels make of ones."""
        ones = [torch.ones_like(p, dtype=torch.float32) for p in self.protection.parameters]
        self._run(dict(enumerate(ones)))
        return ones

    def capacity(self) -> float:
        """Mean rate over all elements, the network's capacity (Wang et al. 2024, section 4.1).

        Of "random" the expected one.
        """
        total = sum(sum(counts) for counts in self.counts)
        rates = 0.0
        for counts, value in zip(self.counts, self.values, strict=True):
            if self.rule == SCALE:
                rates += sum(counts) * value
                continue
            rates += counts[0]
            for users, count in enumerate(counts[1:], 1):
                factor = {"hat": 0.0, "const": value, "random": 0.5}.get(self.rule)
                rates += count * (value / (users + value) if factor is None else factor)
        return rates / total


class AdjustmentRates(Mapping[str, Tensor]):
    """Layer -> rates of its weights, or of its biases; computed when first looked at."""

    def __init__(self, adjustment: Adjustment, kind: str) -> None:
        self._adjustment = adjustment
        names = adjustment.protection.names
        places = {name: i for i, name in enumerate(names) if name.endswith(f".{kind}")}
        self._places = {
            name.removesuffix(f".{kind}").replace(".", "/"): i for name, i in places.items()
        }
        self._rates: list[Tensor] | None = None

    def __getitem__(self, layer_name: str) -> Tensor:
        place = self._places[layer_name]
        if self._rates is None:
            self._rates = self._adjustment.rates()
        return self._rates[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def user_counts(protection: LayerProtection, exact: bool) -> list[list[int]]:
    """For each parameter, how many of its elements n tasks use, n = 0, 1, ..; waits for the device.

    Args:
        protection: of the backbone.
        exact: as for Adjustment.
    """
    rows = zip(
        protection.parameters,
        protection.out_tasks,
        protection.in_tasks,
        protection.groups,
        strict=True,
    )
    return [_counts(p.numel(), out, into, groups, exact) for p, out, into, groups in rows]


def _counts(elements: int, out: Tensor, into: Tensor, groups: int, exact: bool) -> list[int]:
    words = out.shape[1]
    # Rows of a group meet the columns of that group only.
    out_groups = out.reshape(groups, -1, words)
    in_groups = into.expand(max(len(into), groups), -1).reshape(groups, -1, words)
    found = torch.zeros(64 * words + 1, dtype=torch.int64, device=out.device)
    for rows, columns in zip(out_groups, in_groups, strict=True):
        if exact:
            (a, a_count), (b, b_count) = (
                torch.unique(side, dim=0, return_counts=True) for side in (rows, columns)
            )
            users = popcount(a[:, None] & b[None])
        else:
            (a, a_count), (b, b_count) = (
                torch.unique(popcount(side), return_counts=True) for side in (rows, columns)
            )
            users = torch.minimum(a[:, None], b[None])
        found.index_add_(0, users.reshape(-1), (a_count[:, None] * b_count[None]).reshape(-1))
    counts = [n * elements // int(found.sum()) for n in found.tolist()]
    last = max(i for i, n in enumerate(counts) if n or i == 0)
    return counts[: last + 1]
