"""How much a network's outputs hang on each of its parameters: MAS's importance, EWC's Fisher."""

from maskcl.importance.estimation import estimate

__all__ = ["estimate"]
