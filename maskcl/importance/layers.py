"""Layers whose parameters' importances follow from the layer's input and its output's gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from maskcl.importance.rules import Call, Matrix, Rows, Rule, Vector
from maskcl.importance.windows import windows
from maskcl.nn.tasks.graph_checks import is_graph_linear


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


_LINEAR: dict[str, Rule] = {"weight": Matrix(_linear_columns), "bias": _BIAS}
_RULES: dict[type, Callable[[Any], dict[str, Rule]]] = {
    nn.Linear: lambda _: _LINEAR,
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
    if is_graph_linear(module):
        return _LINEAR if "forward" not in vars(module) else {}
    for kind, make in _RULES.items():
        if isinstance(module, kind):
            same = all(
                getattr(type(module), m, None) is getattr(kind, m, None) and m not in vars(module)
                for m in _METHODS
            )
            return make(module) if same else {}
    return {}
