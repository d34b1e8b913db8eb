"""What a network may know of a sequential model whose modules' calls it leaves out."""

from __future__ import annotations

from itertools import repeat
from operator import attrgetter, contains

import torch
from torch import nn

_HOOK_NAMES = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# And of a module that is compiled by itself, which makes no difference inside compiled code.
_HOOKS = attrgetter(*_HOOK_NAMES, "_compiled_call_impl")


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Of a sequential model, [] of any other; one module may come twice."""
    if type(model) is not nn.Sequential:
        return []
    return [module for module in model._modules.values() if module is not None]


def has_own_forward(module: nn.Module) -> bool:
    """Whether somebody has put another ``forward`` in the place of its class's."""
    return "forward" in vars(module)


def are_watched(modules: list[nn.Module]) -> bool:
    """Whether any of these has a hook that wants to see its call, or a ``forward`` of its own."""
    if torch.compiler.is_compiling():  # which cannot see into an attrgetter
        hooked = any(getattr(m, name) for m in modules for name in _HOOK_NAMES)
        return hooked or any(has_own_forward(m) for m in modules)
    own = map(contains, map(vars, modules), repeat("forward"))
    return any(map(any, map(_HOOKS, modules))) or any(own)
