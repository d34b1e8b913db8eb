"""Problems: how a batch becomes logits, a loss and predictions."""

from maskcl.problems.base import Problem
from maskcl.problems.vision import Vision

__all__ = ["Problem", "Vision"]
