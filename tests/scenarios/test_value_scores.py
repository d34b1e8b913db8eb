"""Scores of predicted values beside their formulas, where torchmetrics' own would go wrong too."""

import numpy as np
import pytest
import torch

from maskcl.scenarios import value_scores
from maskcl.scenarios.value_scores import METRICS, chance, metric_reasons, score

Y = torch.tensor([[1.0, -2.0], [2.0, 0.5], [4.0, 0.0], [-1.0, 3.0]])
P = torch.tensor([[1.5, -1.0], [2.0, 0.0], [3.0, 1.0], [0.0, 2.0]])


def by_hand(metric, p, y):
    p, y = p.double().numpy(), y.double().numpy()
    if metric == "pearson":
        return np.mean([np.corrcoef(p[:, k], y[:, k])[0, 1] for k in range(y.shape[1])])
    error = y - p
    left = error.var(0) if metric == "explained_variance" else (error**2).mean(0)
    return np.mean(1 - left / y.var(0))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-6, 0.0), (1e5, 3e6)])
def test_equals_its_formula_whatever_the_targets_unit(metric, scale, shift):
    p, y = P.double() * scale + shift, Y.double() * scale + shift
    assert score(metric, 0, p, y) == pytest.approx(by_hand(metric, P, Y), abs=1e-6)
    assert score(metric, 0, y, y) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", METRICS)
def test_predicting_the_mean_is_chance(metric):
    mean = Y.mean(0).expand_as(Y)
    assert score(metric, 0, mean, Y) == pytest.approx(chance(metric, Y, 2), abs=1e-6)


def test_scores_go_below_0():
    assert score("r2", 0, -10 * Y, Y) < -1
    assert score("pearson", 0, -10 * Y, Y) == pytest.approx(-1.0)


def test_constant_test_targets_have_no_score():
    y = torch.stack([torch.arange(5.0), torch.full((5,), 2.5)], 1)
    for metric in METRICS:
        assert metric_reasons(metric, y[:, :1]) is None
        assert "value 1 is 2.5 in all 5" in metric_reasons(metric, y)
        assert "in all 1" in metric_reasons(metric, y[:1])
    assert "wanted r2, explained_variance, pearson" in metric_reasons("accuracy", y)


def test_without_torchmetrics_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(value_scores.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in metric_reasons("r2", Y)


@pytest.mark.parametrize(
    ("predictions", "text"),
    [
        (P[:3], r"test targets \[4, 2\], predictions has shape \[3, 2\]"),
        (P[:, :1], r"predictions has shape \[4, 1\]"),
        (P.long(), "floating tensor, got torch.int64"),
        (P.tolist(), "floating tensor, got list"),
        (P / 0, "not finite"),
    ],
)
def test_bad_predictions_get_a_sentence(predictions, text):
    with pytest.raises(ValueError, match=text):
        score("r2", 3, predictions, Y)


def test_half_precision_predictions_are_scored():
    assert score("r2", 0, P.bfloat16(), Y) == pytest.approx(by_hand("r2", P, Y), abs=0.02)
