"""Gradients of one sample after the other, for parameters of layers without a rule."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from maskcl.importance.groups import Groups
from maskcl.importance.quiet import requiring
from maskcl.importance.samples import Samples
from maskcl.importance.spread import Spread
from maskcl.importance.subject import Subject, Whole
from maskcl.ops import mas_accumulate_


class PerSample:
    """Exact gradients, in the first way that the model allows; that one is kept.

    "together": torch.func's vmap of the whole forward over chunks of samples. "alone": a forward
    of each sample. "within": one forward, from which each sample's gradient is taken; for batches
    that cannot be taken apart. Samples that are groups of rows are of this kind, after what a copy
    of a parameter for each sample can tell.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.way = "together"
        self.spread = Spread(subject)
        self._whole = Whole(subject.model)

    def add(
        self,
        batch: Any,
        labels: Tensor | None,
        count: int,
        wanted: Sequence[Tensor],
        groups: Groups | None = None,
    ) -> None:
        """Add the batch's samples to the importances of the ``wanted`` parameters."""
        if groups is not None:
            self.way = "within"
            spread = self.spread.gradients(batch, labels, groups, wanted)
            for parameter, together in spread.items():
                omega = self.subject.omegas[parameter]
                mas_accumulate_([omega], [together], square=self.subject.square)
            wanted = [p for p in wanted if p not in spread]
        if not wanted:
            return
        samples, done = Samples((batch, labels), count), 0
        if groups is None and not Samples(batch, count).tensors:
            self.way = "within"
        if self.way == "together":
            done = self._together(samples, wanted)
            if done < count:
                self.way = "alone" if done or self._apart(samples) else "within"
        omegas = [self.subject.omegas[p] for p in wanted]
        if done == count:
            return
        if self.way == "alone":
            gradients = alone(self.subject, samples, wanted, first=done)
        else:
            gradients = self._within(batch, labels, wanted)
        for found in gradients:
            mas_accumulate_(omegas, found, square=self.subject.square)

    def _together(self, samples: Samples, wanted: Sequence[Tensor]) -> int:
        """Add samples in chunks; how many were done before vmap could not go on."""
        subject = self.subject
        params = {f"model.{subject.names[p]}": p.detach() for p in wanted}
        omegas = [subject.omegas[p] for p in wanted]
        size = sum(p.numel() * p.element_size() for p in wanted)
        step = max(1, subject.memory // (2 * size))  # the gradients, and what vmap makes them of

        def value(params: dict[str, Tensor], *tensors: Tensor) -> Tensor:
            return functional_call(self._whole, params, (lambda: self._value(samples, tensors),))

        for start in range(0, samples.count, step):
            part = [t[start : start + step].unsqueeze(1) for t in samples.tensors]
            try:
                with warnings.catch_warnings():
                    # A rule that vmap has not is a loop over samples: as slow as the other way.
                    warnings.filterwarnings("ignore", "There is a performance drop")
                    found = vmap(grad(value), in_dims=(None, *[0] * len(part)))(params, *part)
            except RuntimeError:  # no rule, a choice by value, memory written in place
                return start
            gradients = [found[name] for name in params]
            mas_accumulate_(omegas, gradients, square=subject.square)
        return samples.count

    def _value(self, samples: Samples, tensors: Sequence[Tensor]) -> Tensor:
        """F of the one sample that these tensors are of."""
        batch, label = samples.put(tensors)
        outputs, _ = self.subject.outputs(batch)
        if outputs.shape[0] != 1:
            raise RuntimeError("a sample alone has not one row of outputs")
        return self.subject.objective.values(outputs, label).sum()

    def _apart(self, samples: Samples) -> bool:
        """Whether the first sample has outputs of its own."""
        with torch.no_grad():
            outputs, _ = self.subject.outputs(samples.rows(0, 1)[0])
        return outputs.shape[0] == 1

    def _within(
        self, batch: Any, labels: Tensor | None, wanted: Sequence[Tensor]
    ) -> Iterator[list[Tensor]]:
        with requiring(wanted) as params:
            outputs, _ = self.subject.outputs(batch)
            values = self.subject.objective.values(outputs, labels)
            for n in range(len(values)):
                yield gradients_of(values[n], params, keep=n + 1 < len(values))


def alone(
    subject: Subject,
    samples: Samples,
    wanted: Sequence[Tensor],
    *,
    first: int = 0,
    outputs: list[Tensor] | None = None,
) -> Iterator[list[Tensor]]:
    """The gradients of one sample after the other, each in a forward of its own.

    Args:
        subject: what is measured.
        samples: of (batch, labels).
        wanted: the parameters.
        first: the sample to begin with.
        outputs: where the samples' outputs are put.
    """
    with requiring(wanted) as params:
        for n in range(first, samples.count):
            batch, label = samples.rows(n, n + 1)
            found, _ = subject.outputs(batch)
            if found.shape[0] != 1:
                raise RuntimeError(
                    f"estimate: a sample alone has outputs of shape {list(found.shape)},"
                    " wanted one row"
                )
            if outputs is not None:
                outputs.append(found.detach())
            value = subject.objective.values(found, label).sum()
            yield gradients_of(value, params)


def gradients_of(value: Tensor, params: list[Tensor], keep: bool = False) -> list[Tensor]:
    """Dense gradients, zeros where nothing depends on a parameter; ``.grad`` is not touched."""
    if not value.requires_grad:
        return [torch.zeros_like(p) for p in params]
    found = torch.autograd.grad(
        value, params, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return [g.to_dense() if g.is_sparse else g for g in found]
