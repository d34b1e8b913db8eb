"""Hooks of a followed model may look at what passes, not change it.

Units were followed through the modules' own code. A forward hook that returns a value would change
what they compute behind the analysis, so that a later task could change an earlier one's outputs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.following.trees import leaves_of
from maskcl.nn.tasks.errors import ConversionError

_KINDS = ("_forward_hooks", "_forward_pre_hooks")
# Those of sharding return what they were given, gathered or cast.
_TRUSTED = ("torch.distributed.", "maskcl.")


class ReadingHooks(OrderedDict[int, Any]):
    """A module's hooks, each made to raise if it returns a value, those registered later too."""

    name = ""

    def __setitem__(self, key: int, hook: Any) -> None:
        super().__setitem__(key, _reading(hook, self.name))


def let_hooks_read_only(modules: Iterable[tuple[str, nn.Module]]) -> None:
    """From here on a forward hook of these that returns a value raises ConversionError.

    Args:
        modules: names, for the message, and modules.
    """
    for name, module in modules:
        for kind in _KINDS:
            hooks = getattr(module, kind)
            if isinstance(hooks, ReadingHooks):
                continue
            if hooks:
                # Handles know this dict, so it stays.
                for key, hook in list(hooks.items()):
                    hooks[key] = _reading(hook, name)
            else:
                setattr(module, kind, new := ReadingHooks())
                new.name = name


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook looks at what goes into a module or comes out of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def free_hooks(model: nn.Module) -> None:
    """Undo it: ordinary hooks again, which may return values."""
    for module in model.modules():
        for kind in _KINDS:
            hooks = getattr(module, kind)
            plain = {k: h.hook if isinstance(h, _Reading) else h for k, h in hooks.items()}
            setattr(module, kind, OrderedDict(plain))


def _reading(hook: Callable[..., Any], name: str) -> Callable[..., Any]:
    is_trusted = str(getattr(hook, "__module__", "")).startswith(_TRUSTED)
    return hook if is_trusted or isinstance(hook, _Reading) else _Reading(hook, name)


class _Reading:
    """A hook of a module, which may neither return a value nor write into what it is given."""

    def __init__(self, hook: Callable[..., Any], name: str) -> None:
        self.hook = hook
        self.name = name

    def __call__(self, module: nn.Module, *args: Any) -> None:
        seen = () if torch.compiler.is_compiling() else tuple(leaves_of(args, Tensor))
        versions = [_version(tensor) for tensor in seen]
        result = self.hook(module, *args)
        if result is None and versions == [_version(tensor) for tensor in seen]:
            return
        did = "wrote into what it was given" if result is None else "returned a value"
        raise ConversionError(
            f"hook {getattr(self.hook, '__qualname__', repr(self.hook))} of module {self.name!r}"
            f" ({type(module).__name__}) {did}, which would change outputs behind the analysis that"
            " protects finished tasks: write what it does into the model's forward and convert"
            " that, or let it look only"
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
