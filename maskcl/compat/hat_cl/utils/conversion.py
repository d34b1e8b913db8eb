"""Between ordinary modules and task dependent ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import nn

from maskcl.compat.hat_cl._counterparts import base_to_task_dependent_mapping as mapping
from maskcl.compat.hat_cl.exceptions import ModuleConversionWarning
from maskcl.compat.hat_cl.modules import AttentionMasker
from maskcl.compat.hat_cl.modules._base import TaskIndexedModuleListABC
from maskcl.compat.hat_cl.modules._masked_layer import HATMaskedModuleABC

_Convert = Callable[[nn.Module], "nn.Module | None"]


def convert_to_task_dependent_module(module: nn.Module, **kwargs: Any) -> nn.Module:
    """A copy whose Linear, Conv, BatchNorm and LayerNorm modules are task dependent.

    What the module's own ``forward`` does with them is its own business: it has to take payloads.

    Args:
        module: the module; it stays as it is.
        kwargs: of ``from_base_module``: HATConfig's, ``num_tasks`` among them.

    Warns:
        ModuleConversionWarning: a module without children has no counterpart; it is copied.
    """

    def convert(part: nn.Module) -> nn.Module | None:
        if type(part) in mapping.values():
            return deepcopy(part)
        found = mapping.get(type(part))
        return None if found is None else found.from_base_module(part, **kwargs)

    return _converted(module, convert, "no task dependent counterpart")


def convert_to_base_module(module: nn.Module, **kwargs: Any) -> nn.Module:
    """A copy of ordinary modules, tensors in, tensors out, for one task.

    In an ``nn.Sequential`` a layer's mask goes behind the norm that follows it, which is where
    payloads apply it.

    Args:
        module: the module; it stays as it is.
        kwargs: of ``to_base_module``: ``task_id`` (None: no task), ``trn_mask_scale``.

    Warns:
        ModuleConversionWarning: a module without children is no counterpart; it is copied.
    """

    def convert(part: nn.Module) -> nn.Module | None:
        if type(part) in mapping.values():
            found: nn.Module = part.to_base_module(**kwargs)  # type: ignore[operator]
            return found
        return deepcopy(part) if type(part) in mapping else None

    converted = _converted(module, convert, "no task dependent module")
    if kwargs.get("task_id") is not None:
        for before, after in zip(_sequences(module), _sequences(converted), strict=True):
            _masks_behind_norms(before, after)
    return converted


def _converted(module: nn.Module, convert: _Convert, nothing: str) -> nn.Module:
    """``module`` with its parts converted; a part that occurs twice stays one."""
    done: dict[int, nn.Module] = {}
    memo: dict[int, Any] = {}

    def visit(part: nn.Module) -> None:
        found = convert(part)
        if found is not None:
            # The copy of the whole then takes the converted part in its place.
            done[id(part)] = memo[id(part)] = found
            found.train(part.training)
            return
        children = list(part.children())
        if not children:
            warnings.warn(
                f"{type(part).__name__}: {nothing}; it is left as it is",
                ModuleConversionWarning,
                stacklevel=4,
            )
        for child in children:
            if id(child) not in done:
                visit(child)

    visit(module)
    return deepcopy(module, memo)


def _sequences(module: nn.Module) -> list[nn.Sequential]:
    return [m for m in module.modules() if type(m) is nn.Sequential and not _is_pair(m)]


def _is_pair(module: nn.Module) -> bool:
    """What a converted layer is: the ordinary layer and its masker."""
    return (
        isinstance(module, nn.Sequential)
        and len(module) == 2
        and isinstance(module[1], AttentionMasker)
    )


def _masks_behind_norms(before: nn.Sequential, after: nn.Sequential) -> None:
    """Have each norm of ``after`` followed by the mask that payloads would be under there.

    Behind a layer the mask moves; where something came between, or the norm mixes units, it is
    applied on both sides.
    """
    masker: nn.Module | None = None
    for index, part in enumerate(before):
        if isinstance(part, HATMaskedModuleABC):
            pair: Any = after[index]
            masker = pair[1]
        elif isinstance(part, TaskIndexedModuleListABC):
            if masker is None:
                continue
            if isinstance(before[index - 1], HATMaskedModuleABC) and not part.mixes_units:
                pair[1] = nn.Identity()
            after[index] = nn.Sequential(after[index], masker)
        elif isinstance(part, (nn.Flatten, nn.Unflatten)) or any(True for _ in part.children()):
            masker = None
