"""hat-cl's surface (https://github.com/xduan7/hat-cl) on maskcl: change the imports' prefix.

``import hat`` becomes ``import maskcl.compat.hat_cl as hat``, ``from hat.modules import HATLinear``
becomes ``from maskcl.compat.hat_cl.modules import HATLinear``, and so on for ``payload``,
``types_``, ``utils``, ``exceptions`` and ``timm_models``. A ``state_dict`` of hat-cl's loads as it
is. What is different, and why: docs/compat-hat-cl.md.
"""

from __future__ import annotations

import importlib
from typing import Any

from maskcl.compat.hat_cl import modules, utils
from maskcl.compat.hat_cl.parameter import TaskIndexedParameter
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.types_ import HATConfig

__all__ = ["HATConfig", "HATPayload", "TaskIndexedParameter", "modules", "utils"]


def __getattr__(name: str) -> Any:
    # Importing it registers names with timm, which only those want who ask for it.
    if name == "timm_models":
        return importlib.import_module(f"{__name__}.timm_models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
