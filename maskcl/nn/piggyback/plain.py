"""One task's view of a frozen network as an ordinary module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.piggyback.layers import PIGGYBACK_LAYERS, PiggybackConv1D
from maskcl.nn.piggyback.masked_layer import PiggybackLayer
from maskcl.nn.piggyback.network import PiggybackNetwork
from maskcl.nn.tasks.frozen_modules import open_shortcuts, thaw_norm
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.norms import TaskNorm
from maskcl.nn.tasks.own_parts import copy_for
from maskcl.nn.tasks.replace_modules import conv_options, replace_modules, with_hooks

_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


@torch.no_grad()
def plain_piggyback(net: PiggybackNetwork, task: int) -> nn.Module:
    """``to_plain`` of a PiggybackNetwork: ordinary layers with the masks multiplied in.

    Raises:
        ValueError: no such task.
        RuntimeError: the task is neither finished nor in training.
    """
    with net.task(task):
        weights = {layer: layer.masked_weight() for layer in net.layers.values()}
    # The copy is given the weights by name: it takes neither masks nor gradients along.
    names = {name: weights[layer] for name, layer in net.layers.items()}
    memo: dict[int, Any] = {id(layer.words): None for layer in weights}
    memo |= {id(p): None for p in net.scores()}
    holder = nn.ModuleList([copy_for(net.model, task, memo)])
    masked = {holder[0].get_submodule(name): weight for name, weight in names.items()}

    def plain(module: nn.Module) -> nn.Module | None:
        if isinstance(module, TaskHeads):
            return with_hooks(module.own_module(task), module)
        if isinstance(module, TaskNorm):
            return with_hooks(module.own_module(task), module)
        if isinstance(module, PIGGYBACK_LAYERS):
            return _layer(module, masked[module])
        return None

    replace_modules(holder, plain)
    for module in holder.modules():
        thaw_norm(module)
        open_shortcuts(module)
    for parameter in holder.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return holder[0].eval()


def _layer(layer: PiggybackLayer, weight: Tensor) -> nn.Module:
    """The ordinary layer with this weight, which is taken over."""
    if isinstance(layer, PiggybackConv1D):
        plain: nn.Module = layer.original_class(weight.shape[1], weight.shape[0])
    elif isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
    elif isinstance(layer, nn.Embedding):
        sizes = layer.num_embeddings, layer.embedding_dim, layer.padding_idx
        plain = nn.Embedding(*sizes, device="meta")
    else:
        assert isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        plain = _CONVS[weight.dim()](**conv_options(layer), device="meta")
    plain.register_parameter("weight", nn.Parameter(weight))
    if "bias" in layer._parameters:
        plain.register_parameter("bias", layer._parameters["bias"])
    return with_hooks(plain, layer)
