"""Scores of multi-label predictions beside scikit-learn's, and what rare labels make of them."""

import numpy as np
import pytest
import torch

from maskcl.scenarios.multilabel_scores import METRICS, chance, metric_reasons, score

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")


def draw(n=60, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.rand(n, labels, generator=generator) < torch.tensor([0.5, 0.2, 0.7])[:labels]
    return torch.randn(n, labels, generator=generator) + y, y.long()


REFERENCE = {
    "map": lambda y, z: sklearn_metrics.average_precision_score(y, z),
    "f1": lambda y, z: np.mean([sklearn_metrics.f1_score(*c) for c in zip(y.T, z.T > 0)]),
    "auroc": lambda y, z: sklearn_metrics.roc_auc_score(y, z),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("labels", [1, 3])
def test_equals_scikit_learns(metric, labels):
    z, y = draw(labels=labels)
    wanted = REFERENCE[metric](y.numpy(), z.numpy())
    assert score(metric, 0, z, y) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("metric", ["map", "auroc"])
def test_logits_far_from_0_are_no_ties(metric):
    z, y = draw()
    assert score(metric, 0, 1000 + z, y) == score(metric, 0, z, y)


@pytest.mark.parametrize("metric", METRICS)
def test_a_label_that_no_test_example_has_is_left_out(metric):
    z, y = draw()
    none = torch.cat([y, torch.zeros_like(y[:, :1])], 1)
    more = torch.cat([z, torch.randn(len(z), 1)], 1)
    assert score(metric, 0, more, none) == score(metric, 0, z, y)
    assert chance(metric, none, 4) == chance(metric, y, 3)
    assert metric_reasons(metric, none) is None
    assert "there is none" in metric_reasons(metric, none[:, 3:])


def test_auroc_leaves_out_a_label_that_all_have():
    z, y = draw()
    every = torch.cat([y, torch.ones_like(y[:, :1])], 1)
    assert score("auroc", 0, torch.cat([z, z[:, :1]], 1), every) == score("auroc", 0, z, y)
    assert "others have not" in metric_reasons("auroc", every[:, 3:])
    assert metric_reasons("map", every[:, 3:]) is None


@pytest.mark.parametrize("metric", METRICS)
def test_chance_is_what_random_logits_reach(metric):
    _, y = draw(n=4000)
    z = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    assert score(metric, 0, z, y) == pytest.approx(chance(metric, y, 3), abs=0.03)


def test_bad_metrics_and_predictions_get_a_sentence():
    z, y = draw()
    assert "wanted map, f1, auroc" in metric_reasons("accuracy", y)
    with pytest.raises(ValueError, match="some are NaN"):
        score("map", 0, z / torch.zeros_like(z) * 0, y)
    with pytest.raises(ValueError, match="floating tensor"):
        score("map", 0, y, y)
    with pytest.raises(ValueError, match=r"predictions has shape \[60\]"):
        score("map", 0, z[:, 0], y)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_targets_are_of_any_dtype(metric, dtype):
    z, y = draw()
    assert score(metric, 0, z, y.to(dtype)) == score(metric, 0, z, y)
