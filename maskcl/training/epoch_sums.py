"""What the steps of an epoch add up to: losses, samples, and how many were right."""

from __future__ import annotations

import torch
from torch import Tensor

from maskcl.problems import Problem

MOST_STEPS, MOST_ELEMENTS = 64, 1 << 16


class EpochSums:
    """Sums on the device, which nothing waits for before `totals`.

    In a small network to compare a batch with its labels and to add up costs a tenth of a step, so
    that a few steps' outputs, and losses, wait to be taken together.

    Args:
        problem: says how many of a batch are right.
        device: of the outputs.
    """

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self._problem = problem
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._samples = 0
        self._size = 0  # samples of each step whose loss waits
        self._losses: list[Tensor] = []
        self._outputs: list[tuple[Tensor, Tensor]] = []
        self._elements = 0  # of outputs that wait

    def add_loss(self, loss: Tensor, samples: int) -> None:
        """A step's mean loss, 0-d without a graph, over that many samples."""
        if samples != self._size or len(self._losses) >= MOST_STEPS:
            self._add_losses()
            self._size = samples
        self._samples += samples
        self._losses.append(loss)

    def add_outputs(self, logits: Tensor, target: Tensor) -> None:
        """A batch's outputs, without a graph, and what they should be."""
        if self._outputs and (
            len(self._outputs) >= MOST_STEPS
            or self._elements + logits.numel() > MOST_ELEMENTS
            or logits.shape[1:] != self._outputs[0][0].shape[1:]
        ):
            self._add_right()
        self._outputs.append((logits, target))
        self._elements += logits.numel()

    def totals(self) -> Tensor:
        """Sum of losses, how many are right (NaN where none can be), samples: float64 [3]."""
        self._add_losses()
        self._add_right()
        return torch.cat([self._sums, self._sums.new_tensor([self._samples])])

    def _add_losses(self) -> None:
        if self._losses:
            self._sums[0] += torch.stack(self._losses).sum(dtype=torch.float64) * self._size
        self._losses = []

    def _add_right(self) -> None:
        if len(self._outputs) == 1:  # not copied, whatever its size
            self._sums[1] += self._problem.correct(*self._outputs[0])
        elif self._outputs:
            logits, targets = map(torch.cat, zip(*self._outputs, strict=True))
            self._sums[1] += self._problem.correct(logits, targets)
        self._outputs, self._elements = [], 0
