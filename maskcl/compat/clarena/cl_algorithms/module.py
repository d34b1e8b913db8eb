"""What algorithms are: Lightning's module where lightning is installed, else an ordinary one."""

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


def module_class() -> Any:
    """``lightning.LightningModule`` where it can be imported, else PlainModule."""
    try:
        return importlib.import_module("lightning").LightningModule
    except ImportError:
        return PlainModule
