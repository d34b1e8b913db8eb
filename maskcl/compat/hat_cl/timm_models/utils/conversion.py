"""Converting the parts of a model in place."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from maskcl.compat.hat_cl._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl.exceptions import ModuleConversionWarning
from maskcl.compat.hat_cl.utils import convert_to_task_dependent_module


def convert_children_to_task_dependent_modules(
    module: nn.Module, exclude: str | Iterable[str] | None = None, **kwargs: Any
) -> None:
    """Replace the children of a module by task dependent ones, in place.

    Args:
        module: whose children; those that take payloads already stay.
        exclude: names of children to leave alone.
        kwargs: of `convert_to_task_dependent_module`.
    """
    left = [exclude] if isinstance(exclude, str) else list(exclude or ())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=ModuleConversionWarning)
        for name, child in list(module.named_children()):
            if name not in left and not isinstance(child, HATPayloadCarrierMixin):
                setattr(module, name, convert_to_task_dependent_module(child, **kwargs))
