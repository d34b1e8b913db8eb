"""Modules that ``fully_shard`` was called for: their class, and the parameters that they have.

Such a module has its own rows of its parameters, except between a forward and its backward, and,
at the root, after any forward: then it has all of them, in the place of the rows that train.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn


def class_name(module: nn.Module) -> str:
    """Name of its class as it was written, without what ``fully_shard`` or ``replicate`` made."""
    kinds = type(module).__mro__
    return next(k for k in kinds if not k.__module__.startswith("torch.distributed.")).__name__


@contextlib.contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, modules under ``fully_shard`` have all of their parameters, whatever passes through.

    Forwards and backwards send nothing then, so that processes may do as many as they like, and
    may ask for gradients of parameters. Every process has to enter and leave it.

    Raises:
        RuntimeError: this version of torch keeps in another place what has to be set for it.
    """
    found = _of_fsdp(modules)
    groups = [group for module in found for group in _groups(module)]
    # torch can set these, for a module and all below it, but says of none what it was.
    before = [(group.post_forward_mesh_info, group.reshard_after_backward) for group in groups]
    try:
        for group in groups:
            group.post_forward_mesh_info, group.reshard_after_backward = None, False
        for module in found:
            module.unshard()
        yield
    finally:
        for group, (mesh, is_after) in zip(groups, before, strict=True):
            group.post_forward_mesh_info, group.reshard_after_backward = mesh, is_after
        for module in found:
            module.reshard()


def _groups(module: Any) -> list[Any]:
    """Parameters that a module gathers together; torch up to 2.11 had one such group at most."""
    state = getattr(module, "_get_fsdp_state", object)()
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:
        one = getattr(state, "_fsdp_param_group", module)
        groups = [] if one is None else [one]
    names = "post_forward_mesh_info", "reshard_after_backward"
    if not all(hasattr(group, name) for group in groups for name in names):
        raise RuntimeError(
            f"torch {torch.__version__} keeps elsewhere how a module under fully_shard gathers its"
            " parameters, which measuring importances has to change for a while: measure them on a"
            " network that is not sharded, or use another version of torch (2.13 and 2.14 do)"
        )
    return list(groups)


def reshard(modules: Iterable[nn.Module]) -> bool:
    """Give modules the parameters back that ``fully_shard`` put away; whether there are such.

    A root keeps all of its parameters after a forward, in place of the shards that train.

    Raises:
        RuntimeError: ``FullyShardedDataParallel`` has taken the parameters away.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    modules = list(modules)
    _refuse_flattened(modules)
    found = _of_fsdp(modules)
    for module in found:
        module.reshard()
    return bool(found)


def _refuse_flattened(modules: list[nn.Module]) -> None:
    for module in modules:
        # What FullyShardedDataParallel says of all modules below it; fully_shard says it too.
        if not getattr(module, "_is_fsdp_managed_module", False):
            continue
        held = [*module._parameters.values(), *(vars(module).get(n) for n in ("weight", "bias"))]
        if any(getattr(p, "_fsdp_flattened", False) for p in held):
            raise RuntimeError(
                f"{class_name(module)} is under torch.distributed.fsdp.FullyShardedDataParallel,"
                " which puts parts of one flat tensor in the place of parameters, so that neither"
                " masks nor protection find their rows: call torch.distributed.fsdp.fully_shard for"
                " the network instead"
            )


def _of_fsdp(modules: Iterable[nn.Module]) -> list[Any]:
    """Those that ``fully_shard`` was called for."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    modules = list(modules)
    # Of a thousand tasks there are thousands of modules, and few kinds.
    kinds = {kind for kind in set(map(type, modules)) if issubclass(kind, fsdp.FSDPModule)}
    return [module for module in modules if type(module) in kinds] if kinds else []
