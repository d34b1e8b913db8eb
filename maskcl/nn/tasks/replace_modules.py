"""Modules in the place of others, everywhere in a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import nn


def replace_modules(model: nn.Module, change: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put ``change(child)`` in the place of each child for which it is not None, everywhere.

    A module that occurs twice is changed once.
    """
    done: dict[int, nn.Module | None] = {}
    kept: list[nn.Module] = []
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is None:
                continue
            if id(child) not in done:
                kept.append(child)
                done[id(child)] = change(child)
            if (new := done[id(child)]) is not None:
                parent._modules[name] = new


def conv_options(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> dict[str, Any]:
    """A convolution's constructor arguments."""
    names = (
        "in_channels",
        "out_channels",
        "kernel_size",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
    )
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None}


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the ``Conv1D`` of transformers: a linear layer with a weight [in, out]."""
    kind = type(module)
    is_theirs = kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
    return is_theirs and set(module._parameters) == {"weight", "bias"} and not module._buffers


def without_hooks(module: nn.Module) -> nn.Module:
    """The module, its own hooks taken off: another module in its place has them."""
    for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(module, name, OrderedDict())
    return module


def with_hooks(new: Any, old: nn.Module) -> Any:
    """``new`` with the hooks and the mode of ``old``."""
    for name, value in vars(old).items():
        if "hook" in name and value:
            setattr(new, name, value)
    new.training = old.training
    return new
