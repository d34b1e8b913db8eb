"""What algorithms are: Lightning's modules and CLArena's where these are installed."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class PlainModule(nn.Module):
    """The part of ``lightning.LightningModule`` that the algorithms use.

    Attributes:
        trainer: None, or an object with ``num_training_batches``.
        hparams: what ``save_hyperparameters`` was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trainer: Any = None
        self.hparams: dict[str, Any] = {}
        self.automatic_optimization = True

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def save_hyperparameters(self, *names: Any) -> None:
        """Add to ``hparams``.

        Args:
            names: of the caller's arguments, or a dictionary by itself; none for all arguments.

        Raises:
            ValueError: the caller has no argument of a name.
        """
        if len(names) == 1 and isinstance(names[0], Mapping):
            self.hparams.update(names[0])
            return
        frame = inspect.currentframe()
        assert frame is not None and frame.f_back is not None
        given = inspect.getargvalues(frame.f_back)
        for name in names or given.args[1:]:
            if name not in given.args:
                found = ", ".join(given.args[1:])
                raise ValueError(f"save_hyperparameters: {name!r} is none of the arguments {found}")
            self.hparams[name] = given.locals[name]


class NotInstalled:
    """In the place of one of CLArena's classes where ``clarena`` cannot be imported."""


def module_class() -> Any:
    """``lightning.LightningModule`` where it can be imported, else PlainModule."""
    try:
        return importlib.import_module("lightning").LightningModule
    except ImportError:
        return PlainModule


def their_class(name: str) -> Any:
    """CLArena's own algorithm of this name where it can be imported, else NotInstalled.

    Its callbacks ask for instances of it, and do nothing or raise for others; so ours derive from
    it, behind all that is ours: none of its methods is run, its ``__init__`` neither.
    """
    try:
        return getattr(importlib.import_module("clarena.cl_algorithms"), name)
    except (ImportError, AttributeError, SyntaxError):  # some of its releases cannot be imported
        return NotInstalled
