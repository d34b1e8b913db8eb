"""Activation checkpointing: what a forward saw is what its recomputation sees.

``torch.utils.checkpoint`` calls a part of the network again in backward, when another task may be
active or none, in a thread of autograd's where there is a GPU. So while the forward runs, the part
that will be called again is wrapped: it then finds the active tasks and masks of the forward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from maskcl.nn.tasks.active import ActiveTask, innermost, set_innermost


def remember_for_recomputation(active: ActiveTask, *, outermost: bool = False) -> None:
    """Note what is active for the recomputation of the checkpointed part around this, if any.

    Args:
        active: the task that runs.
        outermost: a network's forward begins.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is not None:
        _remember(_region_of(hooks[0]), "recompute_fn", again=False)
    elif (active.learns or outermost) and not torch.is_grad_enabled():
        # The reentrant kind runs the forward without gradients.
        _remember(_reentrant_region(), "run_function", again=True)


def _remember(region: Any, name: str, *, again: bool) -> None:
    """Wrap the function that a region calls again, once."""
    if region is None or hasattr(getattr(region, name), "maskcl_active"):
        return
    function, seen = getattr(region, name), innermost()
    assert seen is not None
    kept = seen.copy()
    for one in kept.chain():
        if one.scale is not None:  # which the next step fills anew, in place
            one.scale = one.scale.detach().clone()
    setattr(region, name, _under(kept, function, again))


def _under(seen: ActiveTask, function: Callable[..., Any], again: bool) -> Callable[..., Any]:
    def recompute(*args: Any, **kwargs: Any) -> Any:
        before = innermost()
        active = seen.copy()
        if again:
            _make_masks_again(active)
        set_innermost(active)
        try:
            return function(*args, **kwargs)
        finally:
            set_innermost(before)

    recompute.maskcl_active = seen  # type: ignore[attr-defined]
    return recompute


def _make_masks_again(active: ActiveTask) -> None:
    """Masks with a graph of their own: the reentrant kind runs a backward for each part."""
    for one in active.chain():
        if one.has_masks and one.make_masks is not None:
            one.make_masks(one)


def _region_of(pack: Any) -> Any:
    """The checkpointed part whose tensors a hook packs, None for a hook of another kind."""
    if not pack.__qualname__.startswith("_checkpoint_hook."):
        return None
    names = pack.__code__.co_freevars
    found = dict(zip(names, pack.__closure__ or (), strict=True))
    return found["frame"].cell_contents if "frame" in found else None


def _reentrant_region() -> Any:
    """The context of the CheckpointFunction whose forward runs now, None where none does."""
    code = torch.utils.checkpoint.CheckpointFunction.forward.__code__
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is code:
            return frame.f_locals["ctx"]
        frame = frame.f_back  # type: ignore[assignment]
    return None
