"""HAT layers in the place of ordinary ones, with the same weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from maskcl.nn.following.norm_conversion import task_norm
from maskcl.nn.following.norm_parts import computes_as
from maskcl.nn.hat.attention import attention_like
from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.layers import HATConv1d, HATConv2d, HATConv3d, HATLinear
from maskcl.nn.hat.message_passing import swapped_convolution
from maskcl.nn.hat.same_padding import same_padding
from maskcl.nn.hat.topology import HATLayer
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.replace_modules import conv_options, is_conv1d, with_hooks

_CONVS: dict[type, type] = {nn.Conv1d: HATConv1d, nn.Conv2d: HATConv2d, nn.Conv3d: HATConv3d}


def task_aware_like(module: nn.Module, num_tasks: int) -> nn.Module | None:
    """The module that carries tasks' masks in the place of an ordinary one; None where it stays."""
    kind = next((k for k in type(module).__mro__ if k is nn.Linear or k in _CONVS), None)
    if type(module) is nn.Embedding:
        return with_hooks(_table_like(module), module) if module.weight.requires_grad else None
    if isinstance(module, nn.MultiheadAttention):
        return attention_like(module)
    if is_conv1d(module):
        return with_hooks(_swapped_conv1d(module), module) if _is_plain_layer(module) else None
    if kind is not None:
        return _layer_like(module, kind) if _is_plain_layer(module) else None
    return swapped_convolution(module) or task_norm(module, num_tasks)


def _table_like(module: nn.Embedding) -> HATEmbedding:
    new = HATEmbedding(
        module.num_embeddings,
        module.embedding_dim,
        module.padding_idx,
        scale_grad_by_freq=module.scale_grad_by_freq,
        device="meta",
    )
    new.weight = module.weight
    return new


def check_tables(model: nn.Module) -> None:
    """Raise ConversionError for a table that trains in a way that nothing could protect."""
    for name, module in model.named_modules():
        if not isinstance(module, nn.Embedding) or not module.weight.requires_grad:
            continue
        where = f"to_hat: module {name!r} ({type(module).__name__})"
        if module.max_norm is not None:
            raise ConversionError(
                f"{where} has max_norm={module.max_norm}, which rewrites the weights that all tasks"
                " share in every forward: set its max_norm to None"
            )
        if module.sparse:
            raise ConversionError(
                f"{where} has sparse=True, and a sparse gradient cannot be protected: set it to"
                " False"
            )


def _swapped_conv1d(module: Any) -> HATLinear:
    """An nn.Linear's HAT layer: the weight, [in, out] in transformers' Conv1D, is transposed."""
    ins, outs = module.weight.shape
    new = HATLinear(ins, outs, module.bias is not None, device="meta")
    weight = module.weight
    new.weight = nn.Parameter(weight.detach().t().contiguous(), weight.requires_grad)
    new.bias = module.bias
    module._parameters["weight"] = None  # copied: a large model's would be there twice
    return new


def _layer_like(module: nn.Module, kind: type[nn.Module]) -> nn.Module | None:
    """The HAT layer of one that computes what ``kind`` does, behind a SamePadding that it has."""
    if computes_as(module, kind):
        return with_hooks(_swapped_layer(module), module)
    if (padding := same_padding(module)) is None:
        return None
    return with_hooks(nn.Sequential(padding, _swapped_layer(module)), module)


def _is_plain_layer(module: nn.Module) -> bool:
    """Whether it has a weight (and bias) of its own and nothing else, and trains."""
    own = dict(module.named_parameters())
    return set(own) <= {"weight", "bias"} and any(p.requires_grad for p in own.values())


def _swapped_layer(module: nn.Module) -> HATLayer:
    # Built without memory, then given the very parameters of the (copied) layer.
    if isinstance(module, nn.Linear):
        bias = module.bias is not None
        new: HATLayer = HATLinear(module.in_features, module.out_features, bias, device="meta")
    else:
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        kind = next(k for k in type(module).__mro__ if k in _CONVS)
        new = _CONVS[kind](**conv_options(module), device="meta")
    new.weight, new.bias = module.weight, module.bias
    new.training = module.training
    return new
