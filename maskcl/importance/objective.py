"""F, the number of a sample whose gradient says how much each parameter matters to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """MAS: the squares of the outputs (Aljundi et al. 2018, section 4). Fisher: log p(y|x).

    One logit alone is that of y = 1 beside y = 0, which has 0: a sigmoid.

    Outputs whose square is infinite, as those of classes that are masked with -inf or the lowest
    number of the dtype, are left out of both.

    Attributes:
        kind: "mas" or "fisher".
        labels: y: "data", "predicted" or "sampled".
        norm: "sum" or "mean" of the squares.
        generator: of the sampled labels.
    """

    kind: str
    labels: str
    norm: str
    generator: torch.Generator | None

    def values(self, outputs: Tensor, labels: Tensor | None) -> Tensor:
        """F of every sample, [N], in float32 (float64).

        Args:
            outputs: [N, ...]; fisher: logits [N, C, ...], classes in dimension 1.
            labels: fisher: [N, ...] of int64, from :meth:`choose`.
        """
        wide, lost = _wide(outputs if self.kind == "mas" else _classes(outputs))
        if self.kind == "mas":
            squares = wide.masked_fill(lost, 0.0).square()
            total = squares.flatten(1).sum(1)
            if self.norm == "mean":
                total = total / (~lost).flatten(1).sum(1).clamp(min=1)
            return total
        assert labels is not None
        log = wide.masked_fill(lost, -torch.inf).log_softmax(1)
        return log.gather(1, labels.unsqueeze(1)).flatten(1).sum(1)

    @torch.no_grad()
    def choose(self, outputs: Tensor, targets: Tensor | None) -> Tensor | None:
        """The labels of :meth:`values`; None for MAS.

        Raises:
            TypeError, ValueError: no targets, or such as the outputs cannot have.
        """
        if self.kind == "mas":
            return None
        if outputs.dim() < 2:
            raise ValueError(
                f"estimate: outputs have shape {list(outputs.shape)}, wanted logits [N, C, ...]"
            )
        wide, lost = _wide(_classes(outputs))
        if self.labels == "data":
            return _checked(targets, lost)
        logits = wide.masked_fill(lost, -torch.inf)
        if self.labels == "predicted":
            return logits.argmax(1)
        # One number a draw, so that they do not depend on the batches that they are drawn in.
        shape = [outputs.shape[0], 1, *outputs.shape[2:]]
        device = "cpu" if self.generator is None else self.generator.device
        drawn = torch.rand(shape, generator=self.generator, device=device, dtype=torch.float64)
        heights = logits.double().softmax(1).cumsum(1)
        return (heights <= drawn.to(heights.device) * heights[:, -1:]).sum(1)


def _classes(logits: Tensor) -> Tensor:
    """[N, C, ...] with C of at least 2: one logit is the difference of two."""
    if logits.dim() > 1 and logits.shape[1] == 1:
        return torch.cat([torch.zeros_like(logits), logits], 1)
    return logits


def _wide(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in the dtype of importances, and which of them are left out."""
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    lost = wide.detach().square().isinf()
    if outputs.dtype != wide.dtype:
        lost = lost | (outputs.detach().abs() >= torch.finfo(outputs.dtype).max)
    return wide, lost


def _checked(targets: Tensor | None, lost: Tensor) -> Tensor:
    wanted = [lost.shape[0], *lost.shape[2:]]
    if targets is None:
        raise ValueError(
            'estimate: labels "data" of kind "fisher" wants the targets, found none'
            " (batches of (x, y), or forward= that returns them)"
        )
    if targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"estimate: targets are {targets.dtype}, wanted integers (classes)")
    if list(targets.shape) != wanted:
        raise ValueError(f"estimate: targets have shape {list(targets.shape)}, wanted {wanted}")
    targets = targets.long()
    outside = (targets < 0) | (targets >= lost.shape[1])
    if bool(outside.any()):
        raise ValueError(
            f"estimate: targets hold {int(targets[outside][0])}, wanted 0 to {lost.shape[1] - 1}"
        )
    if bool(lost.gather(1, targets.unsqueeze(1)).any()):
        raise ValueError("estimate: targets hold a class whose output is masked")
    return targets
