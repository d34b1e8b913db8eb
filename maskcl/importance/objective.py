"""F, the number of a sample whose gradient says how much each parameter matters to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskcl.importance.likelihoods import LIKELIHOODS, wide


@dataclass(frozen=True)
class Objective:
    """MAS: the squares of the outputs (Aljundi et al. 2018, section 4). Fisher: log p(y|x).

    Outputs whose square is infinite, as those of classes that are masked with -inf or the lowest
    number of the dtype, are left out of both.

    Attributes:
        kind: "mas" or "fisher".
        labels: y: "data", "predicted" or "sampled".
        norm: "sum" or "mean" of the squares.
        generator: of the sampled labels.
        likelihood: p, one of ``LIKELIHOODS``.
    """

    kind: str
    labels: str
    norm: str
    generator: torch.Generator | None
    likelihood: str = "categorical"

    def values(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """F of every sample, [N], in float32 (float64).

        Args:
            outputs: [N, ...]; fisher: as the likelihood has them.
            labels: fisher: from :meth:`choose`.
        """
        if self.kind != "mas":
            assert labels is not None
            return LIKELIHOODS[self.likelihood].log(outputs, labels)
        values, lost = wide(outputs)
        squares = values.masked_fill(lost, 0.0).square()
        total = squares.flatten(1).sum(1)
        if self.norm == "mean":
            total = total / (~lost).flatten(1).sum(1).clamp(min=1)
        return total

    @torch.no_grad()
    def choose(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """The labels of :meth:`values`; None for MAS.

        Raises:
            TypeError, ValueError: no targets, or such as the outputs cannot have.
        """
        if self.kind == "mas":
            return None
        likelihood = LIKELIHOODS[self.likelihood]
        if self.labels == "data":
            return likelihood.check(outputs, targets)
        if self.labels == "predicted":
            return likelihood.likeliest(outputs)

        def draw(shape: Sequence[int]) -> Tensor:
            device = "cpu" if self.generator is None else self.generator.device
            drawn = torch.rand(
                list(shape), generator=self.generator, device=device, dtype=torch.float64
            )
            return drawn.to(outputs.device)

        return likelihood.sample(outputs, draw)
