"""From the calls of layers to the importance of one parameter.

A rule turns calls, each the layer's input and its output's gradient, into the sum over samples of
|dF/dW| of one parameter. What a sample does at several positions, or in several calls, is added
before the absolute value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskcl.ops import linear_importance_, mas_accumulate_

# What unfolded inputs may take on a CPU: few enough bytes to be read while in the last cache,
# enough of them that threads do not meet more often than they work.
_CACHE = 8 << 20


class Call(NamedTuple):
    """One call of a layer: input x and output gradient dy, [N, T, *]: rows T of each sample."""

    module: Any
    x: Tensor
    dy: Tensor


class Rule:
    """How one parameter of a layer is measured.

    Attributes:
        kind: uses of a parameter in several layers add up where this is the same.
        layouts: how samples may lie in the layer's input; see ``arrange``.
        reads_input: whether the input's values matter.
    """

    kind: object
    layouts: tuple[str, ...] = ("first", "rows", "second")
    reads_input = True

    def add(self, omega: Tensor, uses: Sequence[Use], square: bool, memory: int) -> None:
        """omega += sum over samples of |sum over ``uses`` of the sample's gradient| (squares)."""
        raise NotImplementedError


class Use(NamedTuple):
    """A call, and the rule of the parameter in it."""

    rule: Any
    call: Call


def arrange(t: Tensor, samples: int, layout: str) -> Tensor | None:
    """[N, T, *] of a tensor whose samples are its first dimension, its rows or its second.

    Rows: [N T, *], the T rows of a sample one after the other. None where it has not that shape.
    """
    if layout == "first":
        return t.unsqueeze(1) if t.dim() and t.shape[0] == samples else None
    if layout == "rows":
        fits = t.dim() and t.shape[0] % samples == 0
        return t.unflatten(0, (samples, -1)) if fits else None
    return t.transpose(0, 1) if t.dim() > 1 and t.shape[1] == samples else None


@dataclass(frozen=True)
class Vector(Rule):
    """A parameter that scales or shifts: its gradient for every sample is small enough to keep."""

    gradient: Callable[[Call, torch.dtype], Tensor]  # [N, *the parameter's shape]
    layouts: tuple[str, ...] = Rule.layouts
    reads_input: bool = True
    kind: object = "vector"

    def add(self, omega: Tensor, uses: Sequence[Use], square: bool, memory: int) -> None:
        """See Rule."""
        parts = [use.rule.gradient(use.call, omega.dtype) for use in uses]
        total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
        mas_accumulate_([omega], [total.to(_dtype(total, omega))], square=square)


@dataclass(frozen=True)
class Matrix(Rule):
    """A weight whose gradient for a sample is a product of two matrices, dY X^T."""

    # The call's samples start to stop: X [n, groups, I, P] and dY [n, groups, O, P].
    columns: Callable[[Call, int, int], tuple[Tensor, Tensor]]
    groups: int = 1
    unfolds: bool = False
    layouts: tuple[str, ...] = Rule.layouts

    @property
    def kind(self) -> object:  # type: ignore[override]
        """Groups make the product another one."""
        return "matrix", self.groups

    def add(self, omega: Tensor, uses: Sequence[Use], square: bool, memory: int) -> None:
        """See Rule."""
        samples = uses[0].call.dy.shape[0]
        step = self._samples_at_a_time(omega, uses, memory)
        for start in range(0, samples, step):
            stop = min(samples, start + step)
            pairs = [use.rule.columns(use.call, start, stop) for use in uses]
            x, dy = (torch.cat(side, -1) if len(side) > 1 else side[0] for side in zip(*pairs))
            dtype = _dtype(dy, omega)
            _add_product(omega, x.to(dtype), dy.to(dtype), square)

    def _samples_at_a_time(self, omega: Tensor, uses: Sequence[Use], memory: int) -> int:
        """As many as ``memory`` holds of unfolded inputs and gradients; of a convolution, fewer."""
        pairs = [use.rule.columns(use.call, 0, 1) for use in uses]
        if len(uses) == 1 and pairs[0][0].shape[-1] == 1:
            return uses[0].call.dy.shape[0]  # one product of matrices for all of them
        numbers = omega.numel()
        if self.unfolds or len(uses) > 1:
            numbers += sum(x.numel() + dy.numel() for x, dy in pairs)
        if self.unfolds and omega.device.type == "cpu":
            memory = min(memory, _CACHE)
        return max(1, memory // (numbers * omega.element_size()))


def _add_product(omega: Tensor, x: Tensor, dy: Tensor, square: bool) -> None:
    """omega += sum_n |dy[n] x[n]^T|, by groups."""
    if x.shape[1] > 1:
        products = dy.to(omega.dtype) @ x.to(omega.dtype).mT
        mas_accumulate_([omega], [products.view(-1, *omega.shape)], square=square)
    elif x.shape[-1] == 1:
        linear_importance_(omega.flatten(1), x[:, 0, :, 0], dy[:, 0, :, 0], square=square)
    else:
        linear_importance_(omega.flatten(1), x[:, 0].mT, dy[:, 0].mT, square=square)


@dataclass(frozen=True)
class Rows(Rule):
    """An embedding: a sample moves only the rows that it looks up, and only those are held."""

    kind: object = "rows"

    def add(self, omega: Tensor, uses: Sequence[Use], square: bool, memory: int) -> None:
        """See Rule."""
        samples, keys, slopes = uses[0].call.dy.shape[0], [], []
        for module, x, dy in (use.call for use in uses):
            owner = torch.arange(samples, device=x.device)[:, None]
            index, slope = x.flatten(1).long(), dy.flatten(1, -2)
            kept = torch.ones_like(index, dtype=torch.bool)
            if module.padding_idx is not None:
                kept = index != module.padding_idx
            keys.append((index * samples + owner)[kept])
            slopes.append(slope[kept].to(omega.dtype))
        pairs, place = torch.cat(keys).unique(return_inverse=True)
        sums = _sum_rows(torch.cat(slopes), place, len(pairs))
        rows, place = torch.unique_consecutive(pairs // samples, return_inverse=True)
        omega[rows] += _sum_rows(sums.square() if square else sums.abs(), place, len(rows))


def _sum_rows(values: Tensor, place: Tensor, count: int) -> Tensor:
    """[count, D]: the sums of rows of ``values`` with the same place, in a fixed order."""
    # The gradient of a look-up is such a sum, and torch has a kernel for it on every device.
    return torch.ops.aten.embedding_dense_backward(values, place, count, -1, False)


def _dtype(of: Tensor, omega: Tensor) -> torch.dtype:
    """What the ops take beside ``omega``: the gradient's own dtype, float64 only where omega is."""
    mixed = torch.float64 in (of.dtype, omega.dtype)
    return omega.dtype if mixed else of.dtype
