"""From a logit for each label and test targets of 0 and 1 to a figure in [0, 1].

Each metric is the mean over a task's labels of the one of a yes-or-no question. A label that no
test example has, of which the question has no answer, is left out of the mean; of ``auroc`` also
one that all have.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from maskcl.extras import install
from maskcl.scenarios.value_scores import checked_outputs

METRICS = ("map", "f1", "auroc")
DEFAULT = "map"


def metric_reasons(metric: str, labels: Tensor) -> str | None:
    """Why a metric says nothing about these test targets; None where it does.

    Args:
        metric: ``map``, mean average precision; ``f1`` of the labels whose logit is above 0; or
            ``auroc``.
        labels: [N, L] of 0 and 1, of any dtype.
    """
    if metric not in METRICS:
        return f"metric is {metric!r}, wanted {', '.join(METRICS)} for multi-label targets"
    if importlib.util.find_spec("torchmetrics") is None:
        return f"{metric} needs torchmetrics: {install('train')}"
    if bool(counted(metric, labels).any()):
        return None
    wanted = "some test examples have and others have not" if metric == "auroc" else ""
    return f"{metric} needs a label that {wanted or 'a test example has'}, and there is none"


def counted(metric: str, labels: Tensor) -> Tensor:
    """bool [L]: the labels that a metric is the mean over."""
    found = labels.bool()  # of uint8 any and all would give uint8
    return found.any(0) & ~found.all(0) if metric == "auroc" else found.any(0)


def score(metric: str, task: int, predictions: Tensor, labels: Tensor) -> float:
    """A metric's value for one task.

    Args:
        metric: one for which `metric_reasons` gives none.
        task: for messages.
        predictions: floating [N, L]: logits.
        labels: [N, L] of 0 and 1, of any dtype.

    Raises:
        ValueError: wrong number, shape or dtype, or a logit that is NaN.
    """
    found = checked_outputs(task, predictions, labels)
    if bool(found.isnan().any()):
        raise ValueError(f"score: task {task}: {metric} ranks logits, and some are NaN")
    kept = counted(metric, labels)
    # Torchmetrics takes integers alone; targets for the loss may be floats.
    columns = zip(found[:, kept].T, labels[:, kept].T.long(), strict=True)
    parts = [_score_of_one(metric, logits, label) for logits, label in columns]
    return sum(parts) / len(parts)


def _score_of_one(metric: str, logits: Tensor, label: Tensor) -> float:
    from torchmetrics.functional import classification

    if metric == "f1":
        return float(classification.binary_f1_score((logits > 0).long(), label))
    # torchmetrics' sigmoid makes ties of logits far from 0; their ranks are in [0, 1].
    values, ranks = logits.double().unique(return_inverse=True)
    function: Any = classification.binary_average_precision
    if metric == "auroc":
        function = classification.binary_auroc
    return float(function(ranks.double() / max(1, len(values) - 1), label))


def chance(metric: str, labels: Tensor, classes: int) -> float:
    """What logits drawn at random, as often above 0 as below, reach in many draws.

    The precision is the share of positives everywhere, and the recall of ``f1`` one half.
    """
    if metric == "auroc":
        return 0.5
    share = labels[:, counted(metric, labels)].double().mean(0)
    return float(torch.mean(share if metric == "map" else share / (share + 0.5)))
