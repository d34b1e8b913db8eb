"""Exceptions and warnings."""

from __future__ import annotations


class HATInitializationError(Exception):
    """What is asked for needs to know which masks come before, and no forward has shown that."""


class MaskerLockedError(Exception):
    """The task that trains is among those that are locked."""


class MaskDimensionMismatchError(Exception):
    """No dimension of the data has as many elements as the mask."""


class ModuleConversionWarning(UserWarning):
    """A module has no task dependent counterpart, or the other way round."""


class LearningSuppressedWarning(UserWarning):
    """Locked tasks use so many units that a layer learns nothing new."""


class MaskDimensionInferenceWarning(UserWarning):
    """Several dimensions of the data have as many elements as the mask."""


class NoParameterToForgetWarning(UserWarning):
    """Every weight of the task is used by other tasks too."""


class InsufficientMaskWarning(UserWarning):
    """A layer has fewer units than tasks."""
