"""The part of a model that all tasks share: freezing it, and telling one base from another."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from maskcl.nn.piggyback.layers import PIGGYBACK_LAYERS
from maskcl.nn.tasks.frozen_modules import close_shortcuts, freeze_norm
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.norms import TaskNorm
from maskcl.shards import whole


def freeze(model: nn.Module) -> None:
    """Take gradients from all parameters, and training mode from norms that are not a task's.

    Torch's transformer layers go without the shortcut that would not see the masks.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    own = {inner for m in model.modules() if isinstance(m, TaskNorm) for inner in m.modules()}
    for module in model.modules():
        if module not in own:
            freeze_norm(module)
            close_shortcuts(module)


def base_hash(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and values of the base, in hexadecimal.

    The same on every device and for every memory layout, sharded or not.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(base_state(model).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = whole(tensor).cpu().contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state without what is of single tasks: masks, scores, their norms and heads."""
    state = model.state_dict()
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(module, PIGGYBACK_LAYERS):
            own = ["words", "scores"]
        elif isinstance(module, (TaskNorm, TaskHeads)):
            own = list(module.state_dict())
        else:
            continue
        for key in own:
            state.pop(prefix + key, None)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}
