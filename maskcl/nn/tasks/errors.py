"""What goes wrong when a model cannot be given masks."""

from __future__ import annotations


class ConversionError(ValueError):
    """Part of a model cannot be followed or protected; the message names it and the remedy."""


class ConversionWarning(UserWarning):
    """A model can be converted, but not as its user may think; the message says how."""
