"""The model that is measured, and what is measured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from maskcl.importance.groups import Groups
from maskcl.importance.objective import Objective

Result = TypeVar("Result")
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
        segments: batch -> the sample of each row, int64 [rows]; None where each row is one.
    """

    model: nn.Module
    forward: Forward
    objective: Objective
    names: dict[Tensor, str]
    omegas: dict[Tensor, Tensor]
    memory: int
    segments: Callable[[Any], Tensor] | None = None

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

    def groups(self, batch: Any, samples: int) -> Groups | None:
        """The rows of each sample; None where each row is one.

        Raises:
            TypeError, ValueError: ``segments`` returns something else.
        """
        return None if self.segments is None else Groups(self.segments(batch), samples)


class Whole(nn.Module):
    """A model inside a module that computes anything of it, so that it sees replaced parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Result]) -> Result:
        """What ``compute`` returns."""
        return compute()


def plain_forward(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    """The forward of batches x and (x, y)."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return model(batch[0]), batch[1]
    return model(batch), None


def _kind(found: Any) -> str:
    return str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
