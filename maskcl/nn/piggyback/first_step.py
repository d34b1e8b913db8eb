"""A look at the first step of bfloat16 scores: to nearest it would lose what they learn by."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook


class _FirstStep:
    """A hook of all optimizers that looks at the first one to step some scores."""

    def __init__(self, scores: Sequence[nn.Parameter]) -> None:
        self._scores = [weakref.ref(score) for score in scores]
        self._handle = register_optimizer_step_pre_hook(self)

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        mine = self._alive()
        held = (id(p) for group in optimizer.param_groups for p in group["params"])
        if not mine or mine.isdisjoint(held):
            return
        self._scores = []
        if getattr(optimizer, "rounding_seed", None) is None:
            warnings.warn(
                f"{type(optimizer).__name__}.step: scores are bfloat16, and a step below half of"
                " what that tells apart (3e-5 at 1e-2) is lost where it is rounded to nearest:"
                " maskcl.optim's SGD, Adam and AdamW with rounding='stochastic' make it in the"
                " mean, and float32 scores make it",
                stacklevel=2,
            )

    def _alive(self) -> set[int]:
        return {id(score) for ref in self._scores if (score := ref()) is not None}

    def ended(self) -> bool:
        """Remove it where it has nothing left to look for; not in a step, which walks all hooks."""
        if self._alive():
            return False
        self._handle.remove()
        return True


_waiting: list[_FirstStep] = []


def warn_at_first_step(scores: Sequence[nn.Parameter]) -> None:
    """Have the first optimizer that steps one of these warn unless it rounds at random."""
    _waiting[:] = [*(look for look in _waiting if not look.ended()), _FirstStep(scores)]
