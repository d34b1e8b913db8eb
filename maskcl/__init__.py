"""maskcl: one network, many tasks, through masks, at the speed of the memory bus.

``maskcl.ops`` holds the fused ops, ``maskcl.nn`` the modules that carry masks, ``maskcl.masks`` the
files that masks travel in, ``maskcl.importance`` what measures parameters, ``maskcl.optim``
optimizers that cannot move what is protected, ``maskcl.export`` one task's network by itself,
``maskcl.checkpoint`` training that goes on after a kill; ``maskcl.methods``, ``maskcl.models``,
``maskcl.problems`` and ``maskcl.scenarios`` are what a ``Trainer`` is given. All of it is imported
when it is first named, so that the command line can say something before torch, which takes
seconds, is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

from maskcl._version import __version__

if TYPE_CHECKING:
    from maskcl import (
        backends,
        checkpoint,
        export,
        importance,
        masks,
        methods,
        models,
        nn,
        ops,
        optim,
        problems,
        scenarios,
    )
    from maskcl.methods.ewc import EWC
    from maskcl.methods.hat import HAT
    from maskcl.methods.mas import MAS
    from maskcl.methods.piggyback import Piggyback
    from maskcl.nn.inference.task_inference import TaskInference
    from maskcl.training.trainer import Trainer
    from maskcl.training.validation import Validation

__all__ = [
    "EWC",
    "HAT",
    "MAS",
    "Piggyback",
    "TaskInference",
    "Trainer",
    "Validation",
    "__version__",
    "backends",
    "checkpoint",
    "export",
    "importance",
    "masks",
    "methods",
    "models",
    "nn",
    "ops",
    "optim",
    "problems",
    "scenarios",
]

_ROOMS = (
    *("backends", "checkpoint", "export", "importance", "masks", "methods", "models", "nn"),
    *("ops", "optim", "problems", "scenarios"),
)
_LATE = {
    "EWC": "maskcl.methods.ewc",
    "HAT": "maskcl.methods.hat",
    "MAS": "maskcl.methods.mas",
    "Piggyback": "maskcl.methods.piggyback",
    "TaskInference": "maskcl.nn.inference.task_inference",
    "Trainer": "maskcl.training.trainer",
    "Validation": "maskcl.training.validation",
}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"maskcl.{name}")
    if name not in _LATE:
        raise AttributeError(f"module 'maskcl' has no attribute {name!r}")
    return getattr(importlib.import_module(_LATE[name]), name)
