"""Regression: a network's outputs are the values themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.problems.base import Problem
from maskcl.problems.vector_targets import VectorTargets

_LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
}


class Regression(VectorTargets):
    """Predict d values of each sample: ``net(...) -> values[n, d]``.

    Targets are taken as they are: scale them to about 1 yourself, by training data alone.

    To EWC the likelihood is a Gaussian of unit variance around the outputs, whatever the loss:
    another loss, and another variance, change the Fisher information by a factor.

    Args:
        data: as of `VectorTargets`.
        loss: ``mse``, the mean squared error; ``l1``, the mean absolute one; ``huber``, of which
            errors above 1 count as in l1.

    Raises:
        ValueError: no such loss, or ``data`` draws targets of its own.
    """

    targets = "values"
    likelihood = "gaussian"

    def __init__(self, data: Problem | None = None, *, loss: str = "mse") -> None:
        super().__init__(data)
        if loss not in _LOSSES:
            raise ValueError(f"Regression: loss is {loss!r}, wanted one of {', '.join(_LOSSES)}")
        self.error = loss

    def predictions(self, outputs: Tensor) -> Tensor:
        """The outputs."""
        return outputs

    def correct(self, outputs: Tensor, target: Tensor) -> Tensor:
        """NaN, 0-d: values are near their targets or far from them, but none is right."""
        return torch.full((), torch.nan, device=outputs.device)

    def describe(self) -> dict[str, Any]:
        """All that a result depends on, as a JSON object."""
        return {**super().describe(), "loss": self.error}

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        return _LOSSES[self.error](outputs, target, reduction="none")
