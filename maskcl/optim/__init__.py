"""Optimizers that cannot move what is protected."""

from maskcl.optim.fused_step import FusedStep
from maskcl.optim.guard import Guard, guard
from maskcl.optim.optimizers import SGD, Adam, AdamW
from maskcl.optim.protect import fuse, protect

__all__ = ["SGD", "Adam", "AdamW", "FusedStep", "Guard", "fuse", "guard", "protect"]
