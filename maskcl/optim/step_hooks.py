"""Hooks around an optimizer's step, called as ``torch.optim`` calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

Closure = Callable[[], Any]
# Positional arguments of a step, the optimizer first, and those by name, as hooks see them.
Given = tuple[tuple[Any, ...], dict[str, Any]]


def call_before(optimizer: Any, closure: Closure | None) -> Given:
    """Call the hooks in front of a step, each of which may give the step other arguments.

    Raises:
        RuntimeError: one gave what is neither None nor a tuple (args, kwargs).
    """
    given: Given = ((optimizer,) if closure is None else (optimizer, closure)), {}
    for hooks in (_global_optimizer_pre_hooks, optimizer._optimizer_step_pre_hooks):
        for hook in tuple(hooks.values()) if hooks else ():
            result = hook(optimizer, *given)
            if result is None:
                continue
            if not isinstance(result, tuple) or len(result) != 2:
                raise RuntimeError(
                    f"{type(optimizer).__name__}.step: a hook in front of it gave {result!r},"
                    " wanted None or a tuple (args, kwargs)"
                )
            given = result
    return given


def closure_of(given: Given) -> Closure | None:
    """Of a step's arguments."""
    args, kwargs = given
    return args[1] if len(args) > 1 else kwargs.get("closure")


def call_after(optimizer: Any, given: Given) -> None:
    """Call the hooks behind a step."""
    for hooks in (optimizer._optimizer_step_post_hooks, _global_optimizer_post_hooks):
        for hook in tuple(hooks.values()) if hooks else ():
            hook(optimizer, *given)
