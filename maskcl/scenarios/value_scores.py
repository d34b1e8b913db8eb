"""From predicted values and test targets to a figure, larger for better, at most 1.

R2 and the explained variance are 0 for predicting the mean of the test targets, and below 0 for
less. Each is the mean over a task's values.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import Tensor

from maskcl.extras import install

METRICS = ("r2", "explained_variance", "pearson")
DEFAULT = "r2"


def metric_reasons(metric: str, labels: Tensor) -> str | None:
    """Why a metric says nothing about these test targets; None where it does.

    Args:
        metric: one of ``METRICS``.
        labels: floating [N, d]. All three metrics compare with how each value varies.
    """
    if metric not in METRICS:
        return f"metric is {metric!r}, wanted {', '.join(METRICS)} for values"
    if importlib.util.find_spec("torchmetrics") is None:
        return f"{metric} needs torchmetrics: {install('train')}"
    constant = (labels == labels[0]).all(0)
    if bool(constant.any()):
        value = int(constant.nonzero()[0])
        return (
            f"{metric} compares with how test targets vary, and value {value} is"
            f" {labels[0, value].item():g} in all {len(labels)}"
        )
    return None


def score(metric: str, task: int, predictions: Tensor, labels: Tensor) -> float:
    """A metric's value for one task.

    ``pearson`` of predictions that are all the same is 0.

    Args:
        metric: one for which `metric_reasons` gives none.
        task: for messages.
        predictions: floating [N, d].
        labels: floating [N, d].

    Raises:
        ValueError: wrong number, shape or dtype, or a prediction that is not finite.
    """
    from torchmetrics.functional import explained_variance, r2_score

    found = checked_outputs(task, predictions, labels).double()
    if not bool(found.isfinite().all()):
        raise ValueError(f"score: task {task}: {metric} compares values, and some are not finite")
    wanted = labels.double()
    # Both scores stay what they are when targets and predictions are moved and scaled alike;
    # torchmetrics takes sums of squares below 1e-4 for 0.
    mean, scale = wanted.mean(0), wanted.std(0)
    found, wanted = (found - mean) / scale, (wanted - mean) / scale
    if metric == "pearson":
        return _pearson(found, wanted)
    function: Any = r2_score if metric == "r2" else explained_variance
    return float(function(found, wanted, multioutput="uniform_average"))


def _pearson(found: Tensor, wanted: Tensor) -> float:
    """Mean over values of the correlation of predictions with targets of mean 0."""
    from torchmetrics.functional import pearson_corrcoef

    total = 0.0
    for prediction, target in zip(found.T, wanted.T, strict=True):
        centred = prediction - prediction.mean()
        if bool((prediction != prediction[0]).any()) and bool(centred.any()):
            total += float(pearson_corrcoef(centred / centred.abs().max(), target))
    return total / found.shape[1]


def chance(metric: str, labels: Tensor, classes: int) -> float:
    """0, the score of the mean of the targets."""
    return 0.0


def checked_outputs(task: int, predictions: Tensor, labels: Tensor) -> Tensor:
    """Predictions on the CPU, if they are floating and of the targets' shape.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(predictions, Tensor) or not predictions.is_floating_point():
        found = getattr(predictions, "dtype", type(predictions).__name__)
        raise ValueError(f"score: predictions must be a floating tensor, got {found}")
    if predictions.shape != labels.shape:
        raise ValueError(
            f"score: task {task} has test targets {list(labels.shape)}, predictions has shape "
            f"{list(predictions.shape)}"
        )
    return predictions.detach().cpu()
