"""From predictions and test labels to a figure in [0, 1]: accuracy, AUROC, Hits@K."""

from __future__ import annotations

import importlib.util
import re

import torch
from torch import Tensor

from maskcl.extras import install

DEFAULT = "accuracy"

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def metric_reasons(metric: str, labels: Tensor) -> str | None:
    """Why a metric says nothing about these test labels; None where it does.

    Args:
        metric: ``accuracy``, ``auroc`` or ``hits@K`` with K at least 1.
        labels: int64[N]; ``auroc`` and ``hits@K`` rank class 1 above class 0.
    """
    if metric == "accuracy":
        return None
    best = hits_at(metric)
    if metric != "auroc" and best is None:
        return f"metric is {metric!r}, wanted accuracy, auroc or hits@K with a K of at least 1"
    if metric == "auroc" and importlib.util.find_spec("torchmetrics") is None:
        return f"auroc needs torchmetrics: {install('train')}"
    if not bool(((labels == 0) | (labels == 1)).all()):
        return f"{metric} ranks two classes, and there are test labels up to {int(labels.max())}"
    negatives, positives = (int((labels == label).sum()) for label in (0, 1))
    if not negatives or not positives:
        return f"{metric} compares two classes, and all {len(labels)} test labels are the same"
    if best is not None and best > negatives:
        return f"{metric} needs at least {best} negatives, and there are {negatives}"
    return None


def hits_at(metric: str) -> int | None:
    """K of ``hits@K``; None where the metric is another."""
    found = re.fullmatch(r"hits@([1-9][0-9]*)", metric)
    return None if found is None else int(found[1])


def score(metric: str, task: int, predictions: Tensor, labels: Tensor) -> float:
    """A metric's value for one task.

    Args:
        metric: one for which `metric_reasons` gives none.
        task: for messages.
        predictions: [N]; labels (integer) for ``accuracy``, else scores (floating), larger for
            what is more likely of class 1.
        labels: int64[N].

    Raises:
        ValueError: wrong number, shape or dtype, or a score that is NaN.
    """
    wanted = "an integer" if metric == "accuracy" else "a floating"
    fits = isinstance(predictions, Tensor) and (
        predictions.dtype in _INTEGERS if metric == "accuracy" else predictions.is_floating_point()
    )
    if not fits:
        found = getattr(predictions, "dtype", type(predictions).__name__)
        raise ValueError(f"score: predictions must be {wanted} tensor, got {found}")
    if predictions.shape != labels.shape:
        raise ValueError(
            f"score: task {task} has {len(labels)} test examples, predictions has shape "
            f"{tuple(predictions.shape)}"
        )
    predictions = predictions.detach().cpu()
    if metric == "accuracy":
        return (predictions == labels).sum().item() / len(labels)
    if bool(predictions.isnan().any()):
        raise ValueError(f"score: task {task}: {metric} ranks scores, and some are NaN")
    best = hits_at(metric)
    return auroc(predictions, labels) if best is None else hits(predictions, labels, best)


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Share of (positive, negative) pairs that the scores order right; a tie counts half."""
    from torchmetrics.functional.classification import binary_auroc

    # torchmetrics takes scores outside [0, 1] for logits, and its sigmoid makes ties of those far
    # from 0. Their ranks are in [0, 1] and have the same order.
    values, ranks = scores.double().unique(return_inverse=True)
    return binary_auroc(ranks.double() / max(1, len(values) - 1), labels).item()


def hits(scores: Tensor, labels: Tensor, best: int) -> float:
    """Share of positives scored strictly above the ``best``-th best negative.

    The metric of ogbl-collab (Hu et al. 2020, Open Graph Benchmark). With fewer negatives than
    ``best`` it is not defined: `metric_reasons` refuses that.
    """
    threshold = scores[labels == 0].topk(best).values[-1]
    return (scores[labels == 1] > threshold).double().mean().item()


def chance(metric: str, labels: Tensor, classes: int) -> float:
    """What guessing reaches: one of ``classes`` at random, or scores drawn at random."""
    best = hits_at(metric)
    if best is not None:
        # A positive's place among the negatives is uniform: K of negatives + 1 places are hits.
        return best / (int((labels == 0).sum()) + 1)
    return 0.5 if metric == "auroc" else 1 / classes
