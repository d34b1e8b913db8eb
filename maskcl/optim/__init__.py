"""Optimizers that cannot move what is protected."""

from maskcl.optim.guard import Guard, guard

__all__ = ["Guard", "guard"]
