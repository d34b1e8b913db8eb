"""Which units a value carries: followed along the graph by moving unit numbers instead of numbers.

A value has one or more terms. A term is an int64 tensor that broadcasts to the value's shape and
says, for each element, the unit that it comes from; a sum of two values has the terms of both. An
operation that only moves elements (flatten, permute, concatenate, ...) is run on the terms as it is
on the value, so its effect needs no rule of its own. A dimension along which a term does not change
is kept at size 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl.nn.tasks.state import EVERY

MOST_REDUCED = 8
"""Units of one term that a reduction keeps apart."""


@dataclass(frozen=True)
class Value:
    """What is known of one tensor of the graph.

    Under the hard mask of any finished task every element is a function of protected weights alone;
    the layers see to that. What matters here is which elements are exactly 0 for a task.

    Attributes:
        terms: each int64, broadcastable to ``shape``: slot of the unit table by element. Empty
            where all elements belong to every task.
        shape: the value's shape.
        problem: None where an element is exactly 0 for each task that uses none of its units;
            else why that is not known, as a phrase for a message.
        followed: False where not even the units are known.
    """

    terms: tuple[Tensor, ...]
    shape: tuple[int, ...]
    problem: str | None = None
    followed: bool = True

    @property
    def every(self) -> bool:
        """Whether all elements belong to every task."""
        return self.followed and not self.terms


def every(shape: Sequence[int]) -> Value:
    """A value that every task uses: a network input, a constant, an unmasked layer's output."""
    return Value((), tuple(shape))


def unknown(shape: Sequence[int], problem: str) -> Value:
    """A value of which nothing is known."""
    return Value((), tuple(shape), problem, followed=False)


def of_units(start: int, stop: int, shape: Sequence[int], dim: int) -> Value:
    """The masked output of a layer with units [start, stop) along ``dim``."""
    size = [1] * len(shape)
    size[dim] = stop - start
    return Value((torch.arange(start, stop).reshape(size),), tuple(shape))


def expanded(value: Value, position: int) -> Tensor:
    """Term ``position`` (the last where there are fewer) at the value's full shape."""
    if not value.terms:
        return torch.full((1,) * len(value.shape), EVERY).expand(value.shape)
    return value.terms[min(position, len(value.terms) - 1)].expand(value.shape)


def moved(values: Sequence[Value], move: Callable[[list[Tensor]], Any]) -> Any:
    """The result of an operation that moves, repeats or drops elements.

    Args:
        values: the tensors among its arguments, all followed.
        move: runs it on one tensor for each of ``values``.

    Returns:
        A Value, or a tuple of them where the operation returns several tensors.
    """
    count = max(len(value.terms) for value in values)
    runs = [move([expanded(value, i) for value in values]) for i in range(max(count, 1))]
    problem = next((value.problem for value in values if value.problem), None)

    def gather(results: Sequence[Any]) -> Any:
        if isinstance(results[0], Tensor):
            shape = tuple(results[0].shape)
            terms = () if count == 0 else distinct(compact(r) for r in results)
            return Value(terms, shape, problem)
        return tuple(gather(parts) for parts in zip(*results, strict=True))

    return gather(runs)


def joined(values: Sequence[Value], shape: Sequence[int]) -> Value:
    """Elementwise sum (or maximum) of values that broadcast to ``shape``: 0 where all are."""
    problem = next((value.problem for value in values if value.problem), None)
    if any(not value.followed for value in values):
        return unknown(shape, problem or "")
    if any(value.every for value in values):
        return every(shape)
    terms = distinct(aligned(t, len(shape)) for value in values for t in value.terms)
    return Value(terms, tuple(shape), problem)


def product(values: Sequence[Value], shape: Sequence[int]) -> Value:
    """Elementwise product: 0 wherever any factor is, so the units of one factor will do."""
    known = [v for v in values if v.terms and v.problem is None]
    if not known:
        return joined([v for v in values if not v.every] or list(values), shape)
    return Value(tuple(aligned(t, len(shape)) for t in known[0].terms), tuple(shape))


def reduced(value: Value, shape: Sequence[int], dims: Sequence[int], keepdim: bool) -> Value:
    """Mean, sum or maximum over ``dims``: 0 where all that is reduced is.

    Of more than a few units each result belongs to every task.
    """
    rank = len(value.shape)
    dims = sorted({d % rank for d in dims})
    terms: list[Tensor] = []
    for term in value.terms:
        parts = [aligned(term, rank)]
        for d in dims:
            parts = [part for whole in parts for part in whole.split(1, d)]
            if len(parts) > MOST_REDUCED:
                return every(shape)
        terms += [part if keepdim else part.squeeze(tuple(dims)) for part in parts]
    return Value(distinct(terms), tuple(shape), value.problem)


def contracted(left: Value | None, right: Value | None, shape: Sequence[int]) -> Value | None:
    """Matrix product: rows of ``left`` or columns of ``right``, either None where it is no Value.

    None unless no units change along the summed side of one of the two.
    """
    for side, summed in ((right, -2), (left, -1)):
        if side is None or not side.terms or side.problem or len(side.shape) < 2:
            continue
        terms = [aligned(term, len(shape)) for term in side.terms]
        if all(term.shape[summed] == 1 for term in terms):
            return Value(tuple(terms), tuple(shape))
    return None


def resized(value: Value, shape: Sequence[int], last: int) -> Value | None:
    """Pooling over the ``last`` dimensions; None where a term changes along one of them."""
    if value.every:
        return every(shape)
    terms = tuple(aligned(t, len(value.shape)) for t in value.terms)
    if len(shape) != len(value.shape) or any(s != 1 for t in terms for s in t.shape[-last:]):
        return None
    return Value(terms, tuple(shape), value.problem)


def repeated(value: Value, dim: int, shape: Sequence[int]) -> Value:
    """Each slice along ``dim`` as often, one after the other, as ``shape`` asks for."""
    terms = []
    for term in value.terms:
        term = aligned(term, len(shape))
        if term.shape[dim] > 1:
            term = term.repeat_interleave(shape[dim] // term.shape[dim], dim)
        terms.append(term)
    return Value(tuple(terms), tuple(shape), value.problem)


def rows_along(value: Value, dim: int) -> Tensor:
    """Distinct rows of unit numbers along ``dim``, int64 [R, C]: who feeds each of C inputs.

    An input c is 0 for a task only if the task uses none of ``rows[:, c]``.
    """
    rows = []
    for term in value.terms:
        term = aligned(term, len(value.shape)).movedim(dim, -1)
        term = term.expand(*term.shape[:-1], value.shape[dim])
        rows.append(term.reshape(-1, value.shape[dim]))
    return torch.unique(torch.cat(rows), dim=0)


def aligned(term: Tensor, rank: int) -> Tensor:
    """A term with ``rank`` dimensions, as broadcasting aligns them."""
    return term.reshape((1,) * (rank - term.dim()) + tuple(term.shape))


def compact(term: Tensor) -> Tensor:
    """The same term with size 1 along each dimension in which it does not change."""
    for dim in range(term.dim()):
        if term.shape[dim] > 1:
            first = term.narrow(dim, 0, 1)
            if term.stride(dim) == 0 or bool((term == first).all()):
                term = first
    return term.contiguous()


def distinct(terms: Any) -> tuple[Tensor, ...]:
    """Terms without repetitions."""
    found: list[Tensor] = []
    for term in terms:
        if not any(torch.equal(term, other) for other in found):
            found.append(term)
    return tuple(found)
