"""BeGin's loaders, such as ``maskcl.compat.begin.scenarios.nodes.NCScenarioLoader``.

Attributes:
    evaluator_map: by a metric's name the evaluator; add your own, and loaders take its name.
"""

from typing import Any

from maskcl.compat.begin.evaluators import (
    AccuracyEvaluator,
    HitsEvaluator,
    MAEEvaluator,
    ROCAUCEvaluator,
)

evaluator_map: dict[str, Any] = {
    "accuracy": AccuracyEvaluator,
    "rocauc": ROCAUCEvaluator,
    "hits": HitsEvaluator,
    "mae": MAEEvaluator,
}
