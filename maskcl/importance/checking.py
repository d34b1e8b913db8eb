"""Samples measured alone beside the same samples measured together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from maskcl.importance.exact import Exact, Known, add_uses, uses_of
from maskcl.importance.groups import Groups
from maskcl.importance.per_sample import alone
from maskcl.importance.quiet import requiring
from maskcl.importance.recording import Record, recorded
from maskcl.importance.samples import Samples
from maskcl.importance.subject import Subject
from maskcl.nn.tasks.own_parts import all_modules
from maskcl.ops import mas_accumulate_

_MOST = 3  # samples that are measured alone
# How far apart, of the largest number, two orders of the same sums may be.
_TOLERANCE = {torch.float64: 1e-7, torch.float32: 3e-3}
_HALF_TOLERANCE = 5e-2
_INSTEAD = 'reduction="batch" measures such a model'


def refuse_mixing(model: nn.Module, messages: bool = True) -> None:
    """Raise where a module is known to mix the samples of a batch.

    Args:
        model: it.
        messages: whether messages between rows mix samples.

    Raises:
        RuntimeError: it names the module.
    """
    modules = all_modules(model)
    kinds = list(map(type, modules))
    norms = {kind for kind in set(kinds) if issubclass(kind, _BatchNorm)}
    passing = {kind for kind in set(kinds) if messages and _passes_messages(kind)}
    mixing = [
        module
        for module, kind in zip(modules, kinds, strict=True)
        if kind in passing or (kind in norms and module._buffers.get("running_mean") is None)
    ]
    for name, module in model.named_modules() if mixing else ():
        if module not in mixing:
            continue
        label = f"{name or 'the model'} ({type(module).__name__})"
        if type(module) in norms:
            raise RuntimeError(
                f"estimate: {label} normalises by the statistics of the batch, in evaluation too,"
                f" so a sample's gradient depends on the others; {_INSTEAD}"
            )
        raise RuntimeError(
            f"estimate: {label} passes messages between rows, so an output's gradient belongs"
            f" to many nodes; {_INSTEAD}, and segments= makes whole graphs the samples"
        )


def _passes_messages(kind: type) -> bool:
    return any(base.__name__ == "MessagePassing" for base in kind.__mro__)


def check(exact: Exact, batch: Any, labels: Tensor | None, count: int) -> None:
    """Compare the first samples together with each alone, and choose the parameters' layouts.

    A parameter that no layout makes equal is measured in the slow way from then on. Nothing is
    compared where the batch cannot be taken apart.

    Raises:
        RuntimeError: an output depends on the other samples of its batch.
    """
    subject, size = exact.subject, min(count, _MOST)
    if not Samples(batch, count).tensors:
        return
    part, some = Samples((batch, labels), count).rows(0, size)
    with torch.no_grad():
        together, _ = subject.outputs(part)
    if together.shape[0] != size:
        return  # rows of the batch are not samples
    apart: list[Tensor] = []
    wanted = {p: torch.zeros_like(subject.omegas[p]) for p in exact.known}
    for found in alone(subject, Samples((part, some), size), list(wanted), outputs=apart):
        mas_accumulate_(list(wanted.values()), found, square=subject.square)
    _compare_outputs(together, torch.cat(apart))
    records = exact.record(part, some)[0]
    noise = _noise(together.dtype, list(wanted.values()), subject.square)
    for parameter, known in list(exact.known.items()):
        if not _choose_layout(known, records, size, wanted[parameter], noise, subject):
            exact.forget(parameter)


def check_groups(exact: Exact, batch: Any, labels: Tensor | None, groups: Groups) -> None:
    """Compare what the ways of a batch find of its first samples with each sample's own gradient.

    A parameter for which they differ is measured in the slow way from then on.

    Raises:
        RuntimeError: a sample's output depends on the rows of another.
    """
    subject, size = exact.subject, min(groups.samples, _MOST)
    every = [*exact.known, *exact.rest]
    wanted = {p: torch.zeros_like(subject.omegas[p]) for p in every}
    with requiring(every) as params, recorded(exact.layers) as recorder:
        outputs, _ = subject.outputs(batch)
        values = subject.objective.values(outputs, labels)
        for n in range(size):
            found = recorder.differentiate(values[n], params, keep=True)
            mas_accumulate_(list(wanted.values()), found, square=subject.square)
            _refuse_others(recorder.records, n, groups)
        recorder.differentiate(values[:size].sum())
    noise = _noise(outputs.dtype, list(wanted.values()), subject.square)
    for parameter, known in list(exact.known.items()):
        if not _choose_layout(
            known, recorder.records, size, wanted[parameter], noise, subject, groups
        ):
            exact.forget(parameter)
    spread = exact.per_sample.spread
    for parameter, gradients in spread.gradients(batch, labels, groups, exact.rest).items():
        first = torch.zeros_like(wanted[parameter])
        mas_accumulate_([first], [gradients[:size]], square=subject.square)
        if not _equal(first, wanted[parameter], parameter.dtype, noise):
            spread.fits[parameter] = False


def _refuse_others(records: list[Record], sample: int, groups: Groups) -> None:
    """Raise where a sample's gradient reaches rows of other samples."""
    for record in records:
        owner = None if record.dy is None else groups.owner_of(record.dy)
        if owner is not None and record.dy is not None and bool(record.dy[owner != sample].any()):
            raise RuntimeError(
                "estimate: the output of a sample depends on rows that segments give to another, so"
                f" a sample has no gradient of its own; {_INSTEAD}"
            )


def _compare_outputs(together: Tensor, apart: Tensor) -> None:
    finite = together[together.isfinite()]
    tolerance = _TOLERANCE.get(together.dtype, _HALF_TOLERANCE)
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    if together.shape != apart.shape or not torch.allclose(
        together, apart, rtol=tolerance, atol=tolerance * scale, equal_nan=True
    ):
        raise RuntimeError(
            "estimate: the outputs of a sample are not the same alone as among others, so the rows"
            " of a batch mix (or the model draws random numbers) and a sample has no gradient of"
            f" its own; {_INSTEAD}"
        )


def _noise(dtype: torch.dtype, importances: list[Tensor], square: bool) -> float:
    """What rounding leaves of a gradient that is 0, as of a bias in front of a norm."""
    if not importances:
        return 0.0
    largest = float(torch.stack([omega.max() for omega in importances if omega.numel()]).max())
    return (32 * torch.finfo(dtype).eps) ** (2 if square else 1) * largest


def _choose_layout(
    known: Known,
    records: list[Record],
    size: int,
    wanted: Tensor,
    noise: float,
    subject: Subject,
    groups: Groups | None = None,
) -> bool:
    """Keep the first layout under which the rules find what single samples gave."""
    # Of one sample alone, every layout is right; groups say themselves which row is whose.
    for layout in known.layouts if size > 1 and groups is None else ["first"]:
        known.layout = layout
        uses = uses_of(known, records, size, groups)
        if uses is None:
            continue
        found = torch.zeros_like(wanted)
        if uses:
            add_uses(found, uses, subject)
        if _equal(found, wanted, known.parameter.dtype, noise):
            return True
    return False


def _equal(found: Tensor, wanted: Tensor, dtype: torch.dtype, noise: float) -> bool:
    """Whether importances of a parameter of this dtype are the same, rounding apart."""
    # A number that is not finite is the estimate's to refuse.
    error, scale = (found - wanted).abs().max(), wanted.abs().max()
    return not bool(error > _TOLERANCE.get(dtype, _HALF_TOLERANCE) * scale + noise)
