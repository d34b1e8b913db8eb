"""What algorithms are: Lightning's modules and CLArena's where these are installed."""

from __future__ import annotations

import importlib
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

    def save_hyperparameters(self, values: dict[str, Any]) -> None:
        """Add to ``hparams``."""
        self.hparams.update(values)


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
