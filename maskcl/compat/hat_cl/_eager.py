"""What must run as it is written, also in the midst of compiled code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])
_REASON = (
    "maskcl.compat.hat_cl: payloads, and modules that take them, note in Python which tasks run and"
    " where units lie, so they run eagerly and fullgraph=True cannot be; convert_to_base_module"
    " gives ordinary modules that compile whole"
)


def eager(function: _F) -> _F:
    """The function, at which ``torch.compile`` ends its graph, to begin another behind it.

    Traced once, it would keep the tasks and masks of that one call for ever.
    """
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        nonlocal disabled
        if disabled is None:
            # Before the compiler is imported, which takes a second, nothing can be compiled.
            if "torch._dynamo" not in sys.modules:
                return function(*args, **kwargs)
            disabled = _disabled(function)
        return disabled(*args, **kwargs)

    return cast("_F", outside)


def _disabled(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    return cast("Callable[..., Any]", torch.compiler.disable(function, reason=_REASON))
