"""BeGin's evaluators, under its names."""

from maskcl.compat.begin.evaluators.evaluator import (
    AccuracyEvaluator,
    BaseEvaluator,
    HitsEvaluator,
    MAEEvaluator,
    ROCAUCEvaluator,
)

__all__ = [
    "AccuracyEvaluator",
    "BaseEvaluator",
    "HitsEvaluator",
    "MAEEvaluator",
    "ROCAUCEvaluator",
]
