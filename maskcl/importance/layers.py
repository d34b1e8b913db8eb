"""Layers whose parameters' importances follow from the layer's input and its output's gradient.

A rule turns a layer's calls into the sum over samples of |dF/dW| of one parameter. What a sample
does at several positions, or in several calls, is added before the absolute value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from maskcl.importance.windows import windows
from maskcl.ops import linear_importance_, mas_accumulate_

# What the matrices of a few samples may take on a CPU, so that they are read while in cache.
_CACHE = 2 << 20


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
            _add_product(omega, x.to(dtype), dy.to(dtype), square, self.unfolds)

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


def _add_product(omega: Tensor, x: Tensor, dy: Tensor, square: bool, unfolded: bool) -> None:
    """omega += sum_n |dy[n] x[n]^T|, by groups."""
    if x.shape[1] == 1 and x.shape[-1] == 1:
        linear_importance_(omega.flatten(1), x[:, 0, :, 0], dy[:, 0, :, 0], square=square)
    elif x.shape[1] == 1 and not unfolded:
        linear_importance_(omega.flatten(1), x[:, 0].mT, dy[:, 0].mT, square=square)
    else:  # positions last in memory, as a convolution has them, is how a product reads them best
        products = dy.to(omega.dtype) @ x.to(omega.dtype).mT
        mas_accumulate_([omega], [products.view(-1, *omega.shape)], square=square)


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


# --- what the layers do


def _linear_columns(call: Call, start: int, stop: int) -> tuple[Tensor, Tensor]:
    x, dy = (t[start:stop].flatten(1, -2).mT.unsqueeze(1) for t in (call.x, call.dy))
    return x, dy


def _conv_columns(call: Call, start: int, stop: int) -> tuple[Tensor, Tensor]:
    conv, x, dy = call.module, call.x[start:stop], call.dy[start:stop]
    found = windows(conv, x.flatten(0, 1), dy.shape[3:])
    slopes = dy.reshape(found.shape[0], conv.groups, -1, found.shape[-1])
    # [n T, groups, C, P] to [n, groups, C, T P]; with one row a sample, the tensor as it is.
    x, dy = (t.unflatten(0, (stop - start, -1)).movedim(1, -2).flatten(-2) for t in (found, slopes))
    return x, dy


def _shift_last(call: Call, dtype: torch.dtype, dims: int = 1) -> Tensor:
    dy = call.dy.flatten(1, -dims - 1)
    return dy[:, 0] if dy.shape[1] == 1 else dy.sum(1, dtype=dtype)


def _shift_channels(call: Call, dtype: torch.dtype) -> Tensor:
    dims = [1, *range(3, call.dy.dim())]
    return call.dy.sum(dims, dtype=dtype)


def _norm_last(normalized: Callable[[Any, Tensor], Tensor], shift: bool) -> Vector:
    """The rule of a norm over the last dimensions."""

    def gradient(call: Call, dtype: torch.dtype) -> Tensor:
        module, x, dy = call
        if not shift:
            dy = normalized(module, x.to(dtype)) * dy
        return _shift_last(Call(module, x, dy), dtype, len(module.normalized_shape))

    return Vector(gradient, reads_input=not shift)


def _norm_channels(normalized: Callable[[Any, Tensor], Tensor]) -> Vector:
    """The rule of the scale of a norm over channels."""

    def gradient(call: Call, dtype: torch.dtype) -> Tensor:
        module, x, dy = call
        size = normalized(module, x.to(dtype).flatten(0, 1)).view(x.shape)
        return _shift_channels(Call(module, x, size * dy), dtype)

    return Vector(gradient, _CHANNELS)


def _layer_norm(m: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, m.normalized_shape, None, None, m.eps)


def _rms_norm(m: nn.RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, list(m.normalized_shape), None, m.eps)


def _group_norm(m: nn.GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x, m.num_groups, None, None, m.eps)


def _batch_norm(m: _NormBase, x: Tensor) -> Tensor:
    assert m.running_mean is not None and m.running_var is not None
    return F.batch_norm(x, m.running_mean.to(x.dtype), m.running_var.to(x.dtype), eps=m.eps)


def _instance_norm(m: _InstanceNorm, x: Tensor) -> Tensor:
    if not m.track_running_stats:
        return F.instance_norm(x, eps=m.eps)
    return _batch_norm(m, x)  # in evaluation mode with running statistics it is the same


_CHANNELS = ("first", "rows")
_BIAS = Vector(_shift_last, reads_input=False)
_CHANNEL_BIAS = Vector(_shift_channels, _CHANNELS, reads_input=False)


def _conv_rules(conv: Any) -> dict[str, Rule]:
    weight = Matrix(_conv_columns, conv.groups, unfolds=True, layouts=_CHANNELS)
    return {"weight": weight, "bias": _CHANNEL_BIAS}


def _embedding_rules(module: Any) -> dict[str, Rule]:
    # By frequency the gradient is divided by counts over the batch.
    return {} if module.scale_grad_by_freq else {"weight": Rows()}


def _channel_rules(normalized: Callable[[Any, Tensor], Tensor]) -> dict[str, Rule]:
    return {"weight": _norm_channels(normalized), "bias": _CHANNEL_BIAS}


_RULES: dict[type, Callable[[Any], dict[str, Rule]]] = {
    nn.Linear: lambda _: {"weight": Matrix(_linear_columns), "bias": _BIAS},
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv_rules),
    nn.Embedding: _embedding_rules,
    nn.LayerNorm: lambda _: {
        "weight": _norm_last(_layer_norm, False),
        "bias": _norm_last(_layer_norm, True),
    },
    nn.RMSNorm: lambda _: {"weight": _norm_last(_rms_norm, False)},
    nn.GroupNorm: lambda _: _channel_rules(_group_norm),
    nn.SyncBatchNorm: lambda _: _channel_rules(_batch_norm),
    _BatchNorm: lambda _: _channel_rules(_batch_norm),
    _InstanceNorm: lambda _: _channel_rules(_instance_norm),
}
# What a subclass may not have replaced: then it computes something else.
_METHODS = ("forward", "_conv_forward")


def rules_of(module: nn.Module) -> dict[str, Rule]:
    """The rules of a layer's own parameters by name; empty where the layer is not known."""
    for kind, make in _RULES.items():
        if isinstance(module, kind):
            same = all(
                getattr(type(module), m, None) is getattr(kind, m, None) and m not in vars(module)
                for m in _METHODS
            )
            return make(module) if same else {}
    return {}
