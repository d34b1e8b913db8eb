"""Parameters that meet each row by itself, as a bias does: one copy of them a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from maskcl.importance.groups import Groups
from maskcl.importance.subject import Subject, Whole


class Spread:
    """Gradients of all samples at once, for parameters outside of layers with a rule.

    A bias, a scale or a vector of graph attention is added to or multiplied with every row. With
    each row given its own sample's copy the outputs are the same, and the gradient of a copy is
    that of one sample. What has other outputs then, or an error, is not such a parameter.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.fits: dict[Tensor, bool] = {}
        self._whole = Whole(subject.model)

    def gradients(
        self, batch: Any, labels: Tensor | None, groups: Groups, wanted: Sequence[Tensor]
    ) -> dict[Tensor, Tensor]:
        """Parameter -> [samples, *its shape], for those of ``wanted`` that this can measure."""
        able = [p for p in wanted if self._fits(p, batch, groups)]
        if not able:
            return {}
        copies = [
            p.detach().expand(groups.samples, *p.shape).clone().requires_grad_() for p in able
        ]
        rows = [self._rows(copy, groups) for copy in copies]
        outputs = self._outputs(dict(zip(able, rows, strict=True)), batch)
        value = self.subject.objective.values(outputs, labels).sum()
        found = torch.autograd.grad(value, copies, allow_unused=True, materialize_grads=True)
        return dict(zip(able, found, strict=True))

    def _fits(self, parameter: Tensor, batch: Any, groups: Groups) -> bool:
        """Whether a copy for each row gives the same outputs; told from the first batch."""
        size = parameter.numel() * parameter.element_size()
        if size * max(len(groups.owner), 1) > self.subject.memory:
            return False
        if parameter not in self.fits:
            copies = parameter.detach().expand(groups.samples, *parameter.shape)
            with torch.no_grad():
                wanted, _ = self.subject.outputs(batch)
                try:
                    found = self._outputs({parameter: self._rows(copies, groups)}, batch)
                except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
                    self.fits[parameter] = False
                else:
                    same = found.shape == wanted.shape
                    self.fits[parameter] = same and torch.allclose(found, wanted, equal_nan=True)
        return self.fits[parameter]

    def _rows(self, copies: Tensor, groups: Groups) -> Tensor:
        """[rows, *]: each row's copy, in the place of a parameter [*] or [1, *]."""
        rows = copies[groups.owner]
        if rows.dim() == 1:
            return rows.unsqueeze(1)
        return rows.flatten(0, 1) if rows.dim() > 2 and rows.shape[1] == 1 else rows

    def _outputs(self, values: dict[Tensor, Tensor], batch: Any) -> Tensor:
        named = {f"model.{self.subject.names[p]}": value for p, value in values.items()}
        return functional_call(self._whole, named, (lambda: self.subject.outputs(batch)[0],))
