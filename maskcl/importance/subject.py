"""The model that is measured, and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from maskcl.importance.objective import Objective

Forward = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Subject:
    """What every way to measure shares.

    Attributes:
        model: in evaluation mode, none of its parameters requiring a gradient.
        forward: model, batch -> outputs [N, ...], targets [N] or None.
        objective: F.
        names: of the wanted parameters, by parameter.
        omegas: their sums over samples, by parameter.
        memory: bytes.
    """

    model: nn.Module
    forward: Forward
    objective: Objective
    names: dict[Tensor, str]
    omegas: dict[Tensor, Tensor]
    memory: int

    @property
    def square(self) -> bool:
        """Whether squares are summed, not absolute values."""
        return self.objective.kind == "fisher"

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Outputs and targets of a batch.

        Raises:
            TypeError, ValueError: they are not what ``forward`` has to return.
        """
        found = self.forward(self.model, batch)
        if not isinstance(found, tuple) or len(found) != 2:
            raise TypeError(
                f"estimate: forward returned {_kind(found)}, wanted (outputs, targets or None)"
            )
        outputs, targets = found
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise TypeError(
                f"estimate: the outputs are {_kind(outputs)}, wanted a floating tensor [N, ...];"
                " forward= may return another part of what the model returns"
            )
        if outputs.dim() == 0:
            raise ValueError("estimate: the outputs have shape [], wanted [N, ...]")
        if targets is not None and not isinstance(targets, Tensor):
            raise TypeError(f"estimate: the targets are {_kind(targets)}, wanted a tensor or None")
        return outputs, targets


def plain_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    """The forward of batches x and (x, y)."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return model(batch[0]), batch[1]
    return model(batch), None


def _kind(found: Any) -> str:
    return str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
