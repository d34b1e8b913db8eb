"""Datasets whose targets are no classes: kept as they are, and refused at construction."""

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from maskcl.scenarios import Scenario, ScenarioError, Task, from_datasets
from maskcl.scenarios.graphs.sets import GraphSet
from maskcl.settings import TASK
from tests import graph_zoo

X = torch.rand(6, 3)
F = torch.tensor([0.1, 0.2, -0.3, 1e6, 0.5, 0.99])


class Items(Dataset):
    """Items one by one."""

    def __init__(self, y):
        self.y = y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return X[index], self.y[index]


class Targets(Items):
    """With ``targets``."""

    def __init__(self, y):
        super().__init__(y)
        self.targets = y


def build(train, test=None, **options):
    test = train if test is None else test
    pairs = [tuple(d if isinstance(d, Dataset) else TensorDataset(X, d) for d in (train, test))]
    return from_datasets(pairs, **{"targets": "values", **options})


def wanted_of(scenario, task=0):
    train = scenario.train_set(task)
    return torch.stack([train[index][1] for index in range(len(train))])


@pytest.mark.parametrize(
    "make",
    [
        lambda y: TensorDataset(X, y),
        lambda y: TensorDataset(X, y.double()),
        lambda y: TensorDataset(X, y[:, None]),
        lambda y: Targets(y.numpy()),
        lambda y: Targets(y.tolist()),
        lambda y: Items(y.tolist()),
        lambda y: Items(y),
        lambda y: Items(y.numpy()),
        lambda y: Items(y[:, None].numpy()),
    ],
)
def test_values_are_kept_to_the_last_bit(make):
    scenario = build(make(F))
    assert torch.equal(wanted_of(scenario).float(), F[:, None])
    assert scenario.score(0, F[:, None].clone()) == 1.0
    assert scenario.outputs == scenario.head_sizes == scenario.classes_per_task == [1]


def test_whole_numbers_are_values_too():
    found = wanted_of(build(torch.arange(6)))
    assert found.dtype == torch.float32
    assert found[:, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_tasks_may_differ_in_their_number_of_values_where_they_have_heads():
    pairs = [(TensorDataset(X, torch.rand(6, d)),) * 2 for d in (2, 1, 3)]
    scenario = from_datasets(pairs, targets="values")
    assert scenario.outputs == [2, 1, 3]
    assert scenario.metric == "r2"
    assert scenario.chance == [0.0] * 3
    assert "1 to 3 values, 6 training" in str(scenario)
    assert str(scenario).endswith("r2")
    assert scenario.describe()["targets"] == "values"
    with pytest.raises(ScenarioError, match="tasks have 2, 1, 3 values, wanted one number in the"):
        from_datasets(pairs, targets="values", setting="domain")
    with pytest.raises(ScenarioError, match="have no classes, by which the class setting"):
        from_datasets(pairs, targets="values", setting="class")


LABELS = torch.tensor([[0, 1], [1, 1], [0, 0], [1, 0], [0, 1], [1, 1]])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_multilabel_targets_of_any_dtype(dtype):
    scenario = build(LABELS.to(dtype), targets="multilabel")
    assert torch.equal(wanted_of(scenario), LABELS)
    assert scenario.metric == "map"
    assert scenario.outputs == [2]
    assert scenario.score(0, LABELS.float() - 0.5) == 1.0
    assert "2 labels" in str(scenario)


@pytest.mark.parametrize("metric", ["map", "f1", "auroc"])
def test_a_metric_of_choice(metric):
    scenario = build(LABELS, targets="multilabel", metric=metric)
    assert scenario.metric == metric
    assert scenario.score(0, LABELS.float() - 0.5) == 1.0


BAD = F.clone()
BAD[4] = torch.nan
CONSTANT = torch.ones(6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((BAD,), "task 0's training set: item 4 has nan in its target, wanted a finite number"),
        ((F, BAD), "task 0's test set: item 4 has nan"),
        ((torch.tensor([0, 1, 2, 3, 4, -torch.inf]),), "training set: item 5 has -inf"),
        ((torch.complex(F, F),), "targets are not real numbers; wanted"),
        ((torch.rand(6, 2, 2),), r"the shape \[6, 2, 2\], wanted \[n\] or \[n, d\]"),
        ((torch.rand(6, 0),), r"shape \[6, 0\]"),
        (
            (torch.rand(6, 2), torch.rand(6, 3)),
            "test set has 3 numbers as the target of an item, and its training set 2",
        ),
        ((F, CONSTANT), "task 0: r2 compares with how test targets vary, and value 0 is 1"),
    ],
)
def test_bad_values_are_told_at_construction(arguments, text):
    with pytest.raises(ScenarioError, match=text):
        build(*arguments)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (LABELS * 2, "item 0 has 2 in its target, wanted 0 or 1"),
        (LABELS * 0.5, "item 0 has 0.5 in its target"),
        (LABELS / 0.0, "wanted 0 or 1"),
        (LABELS[:, 0], r"shape \[6\], wanted \[n, L\]"),
        (LABELS * 0, "map needs a label that a test example has, and there is none"),
    ],
)
def test_bad_labels_are_told_at_construction(labels, text):
    with pytest.raises(ScenarioError, match=text):
        build(labels, targets="multilabel")


def test_lists_of_label_numbers_are_no_labels():
    ragged = Items([[0, 2], [1], [], [0], [1, 2], [2]])
    with pytest.raises(
        ScenarioError, match="targets are not numbers, as many for each item; wanted"
    ):
        build(ragged, targets="multilabel")


def test_tasks_made_by_hand_are_checked_too():
    def hand(train, test, outputs=1):
        task = Task(list(range(outputs)), GraphSet(graphs, train), GraphSet(graphs), test)
        return Scenario("mine", TASK, 0, [task], (6,), problem="graph", targets="values")

    graphs = [graph_zoo.graph(seed=seed) for seed in range(6)]
    assert hand(F[:, None], F[:, None]).score(0, F[:, None]) == 1.0
    with pytest.raises(ScenarioError, match=r"task 0's test set: targets have the shape \[6\]"):
        hand(F[:, None], F)
    with pytest.raises(ScenarioError, match="training set: item 4 has nan in its target"):
        hand(BAD[:, None], F[:, None])
    with pytest.raises(ScenarioError, match=r"shape \[6, 1\], and the task has 2 values"):
        hand(F[:, None], F[:, None], 2)
    with pytest.raises(ScenarioError, match="int64, wanted floating values"):
        hand(F[:, None].long(), F[:, None])


def test_unknown_kinds_and_metrics_get_a_sentence():
    with pytest.raises(ScenarioError, match="targets is 'floats', wanted classes, values, multi"):
        build(F, targets="floats")
    with pytest.raises(ScenarioError, match="wanted r2, explained_variance, pearson for values"):
        build(F, metric="accuracy")
    with pytest.raises(ScenarioError, match="wanted accuracy, auroc"):
        build(torch.tensor([0, 1] * 3), targets="classes", metric="r2")


def test_classes_take_a_metric_too():
    y = torch.tensor([0, 1, 0, 1, 1, 0])
    scenario = build(y, targets="classes", metric="auroc")
    assert scenario.score(0, y.float()) == 1.0
    assert "targets" not in scenario.describe()  # as it always was


def test_a_dataset_of_numpy_items_goes_to_the_network_as_tensors():
    y = np.random.default_rng(0).random((6, 2))
    scenario = build(Items(y))
    assert torch.equal(wanted_of(scenario), torch.as_tensor(y))
