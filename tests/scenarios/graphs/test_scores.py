"""AUROC and Hits@K against cases worked out by hand; what a metric refuses."""

import pytest
import torch
from torch.utils.data import TensorDataset

from maskcl.scenarios import Scenario, ScenarioError, Task, scores
from maskcl.settings import DOMAIN


def scenario(labels, metric, classes=(0, 1)):
    labels = torch.tensor(labels)
    rows = TensorDataset(torch.zeros(len(labels), 1))
    task = Task(list(classes), rows, rows, labels)
    return Scenario("made", DOMAIN, 0, [task], (1,), problem="node", metric=metric)


def test_auroc_is_the_share_of_pairs_in_the_right_order_and_a_tie_counts_half():
    made = scenario([1, 0, 1, 0, 1], "auroc")
    # Positives 0.9 0.4 0.2, negatives 0.4 0.1: above, above, tie, above, below, above.
    assert made.score(0, torch.tensor([0.9, 0.4, 0.4, 0.1, 0.2])) == pytest.approx(4.5 / 6)
    assert made.score(0, torch.tensor([2.0, 1.0, 2.0, 1.0, 2.0])) == 1.0
    assert made.score(0, torch.zeros(5)) == 0.5


def test_auroc_takes_logits_far_from_zero_and_infinite_ones():
    """A sigmoid would make ties of them: torchmetrics applies one to what is not in [0, 1]."""
    made = scenario([1, 0, 1, 0], "auroc")
    assert made.score(0, torch.tensor([400.0, 300.0, 200.0, 100.0])) == pytest.approx(3 / 4)
    assert made.score(0, torch.tensor([400.0, -torch.inf, 300.0, 200.0])) == 1.0
    tiny = torch.tensor([3e-8, 2e-8, 4e-8, 1e-8], dtype=torch.bfloat16)
    assert made.score(0, tiny) == 1.0


def test_hits_counts_positives_strictly_above_the_kth_best_negative():
    labels = [1, 1, 1, 1, 0, 0, 0]
    points = torch.tensor([9.0, 5.0, 4.0, 1.0, 7.0, 5.0, 2.0])
    assert scenario(labels, "hits@1").score(0, points) == 0.25
    # The second best negative has 5: a positive with 5 is no hit.
    assert scenario(labels, "hits@2").score(0, points) == 0.25
    assert scenario(labels, "hits@3").score(0, points) == 0.75


def test_chance_of_each_metric():
    assert scenario([0, 1, 2, 0], "accuracy", (0, 1, 2)).chance == [1 / 3]
    assert scenario([0, 1], "auroc").chance == [0.5]
    made = scenario([1] * 50 + [0] * 9, "hits@4")
    assert made.chance == [0.4]
    random = torch.Generator().manual_seed(0)
    found = [made.score(0, torch.rand(59, generator=random)) for _ in range(400)]
    assert sum(found) / 400 == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    ("labels", "metric", "sentence"),
    [
        ([0, 1], "auc", "metric is 'auc', wanted accuracy, auroc or hits@K"),
        ([0, 1], "hits@0", "metric is 'hits@0', wanted accuracy"),
        ([1, 0, 1], "hits@2", "hits@2 needs at least 2 negatives, and there are 1"),
        ([1, 1], "auroc", "all 2 test labels are the same"),
        ([0, 1, 2], "auroc", "ranks two classes, and there are test labels up to 2"),
    ],
)
def test_a_metric_that_says_nothing_is_refused_at_once(labels, metric, sentence):
    with pytest.raises(ScenarioError, match="made: task 0: ") as caught:
        scenario(labels, metric)
    assert sentence in str(caught.value)


def test_auroc_without_torchmetrics_is_refused_before_any_training(monkeypatch):
    monkeypatch.setattr(scores.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ScenarioError, match="auroc needs torchmetrics: pip install"):
        scenario([1, 0], "auroc")


def test_scores_are_refused_that_cannot_be_ranked():
    made = scenario([1, 0, 1], "auroc")
    with pytest.raises(ValueError, match="some are NaN"):
        made.score(0, torch.tensor([0.1, torch.nan, 0.2]))
    with pytest.raises(ValueError, match=r"a floating tensor, got torch\.int64"):
        made.score(0, torch.tensor([1, 0, 1]))
    with pytest.raises(ValueError, match="3 test examples, predictions has shape"):
        made.score(0, torch.zeros(3, 1))


def test_other_arguments_of_a_scenario_are_checked_and_described():
    rows = TensorDataset(torch.zeros(2, 1))
    task = Task([0, 1], rows, rows, torch.tensor([0, 1]))
    with pytest.raises(ScenarioError, match="problem is 'nodes', wanted vision, node"):
        Scenario("made", DOMAIN, 0, [task], (1,), problem="nodes")
    with pytest.raises(ScenarioError, match="1 tasks, but outputs of 2"):
        Scenario("made", DOMAIN, 0, [task], (1,), outputs=[1, 1])
    made = Scenario("made", DOMAIN, 0, [task], (1,), outputs=[1], detail={"edges": "none"})
    assert (made.outputs, made.classes_per_task) == ([1], [2])
    assert made.describe()["outputs"] == [1]
    assert made.describe()["detail"] == {"edges": "none"}


def test_hits_at_reads_k():
    assert [scores.hits_at(name) for name in ("hits@50", "auroc", "hits@", "hits@-1")] == [
        50,
        None,
        None,
        None,
    ]
