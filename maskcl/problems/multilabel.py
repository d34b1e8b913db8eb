"""Multi-label classification: any number of a task's labels may be right for a sample."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from maskcl.problems.vector_targets import VectorTargets


class MultiLabel(VectorTargets):
    """Say of each of L labels whether a sample has it: ``net(...) -> logits[n, L]``.

    The loss is the binary cross-entropy of each logit, the mean over samples and labels; to EWC the
    likelihood is the product of the labels' own.

    Args:
        data: as of `VectorTargets`.

    Raises:
        ValueError: ``data`` draws targets of its own.
    """

    targets = "multilabel"
    likelihood = "bernoulli"

    def predictions(self, logits: Tensor) -> Tensor:
        """Which labels have a logit above 0, int64 [n, L]."""
        return (logits > 0).long()

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum over samples of the share of their labels that are right, 0-d."""
        right = self.predictions(logits) == target
        return right.count_nonzero() / right.shape[1]

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, target, reduction="none")
