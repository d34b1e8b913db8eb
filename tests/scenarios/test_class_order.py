"""Which classes each task of images has: by list, or in the seed's order."""

from __future__ import annotations

import pytest
import torch

from maskcl import scenarios
from maskcl.scenarios import ScenarioError

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def pixels(scenario, task):
    x, y = scenario.train_set(task).take(torch.arange(len(scenario.train_set(task))))
    return x, y


def test_classes_by_list_have_the_images_of_these_classes():
    plain = scenarios.load("split-digits")
    listed = scenarios.load("split-digits", groups=[[9, 8], [4, 5]])
    assert listed.classes == [[9, 8], [4, 5]]
    assert listed.detail["order"] == "classes as given; in no task 0 1 2 3 6 7"
    x, y = pixels(plain, 4)
    found, labels = pixels(listed, 0)
    assert torch.equal(found, x)
    assert torch.equal(labels, 1 - y)  # local labels are places in the list
    assert torch.equal(pixels(listed, 1)[1], pixels(plain, 2)[1])


def test_the_seeds_order_is_the_seeds():
    first, again, other = (
        scenarios.load("split-digits", shuffle=True, seed=seed) for seed in (0, 0, 1)
    )
    assert first.classes == again.classes != other.classes
    assert sorted(label for part in first.classes for label in part) == list(range(10))
    assert first.classes != scenarios.load("split-digits").classes
    nodes = scenarios.load("nodes-digits", shuffle=True, seed=0)
    assert first.classes == nodes.classes
    assert first.describe()["detail"] == {"order": first.detail["order"]}
    assert scenarios.load("split-digits").detail == {}


def test_the_class_setting_numbers_classes_as_they_come():
    scenario = scenarios.load("split-digits", setting="class", groups=[[3], [7, 1]])
    assert scenario.outputs == [1, 3]
    assert pixels(scenario, 1)[1].unique().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"groups": [[0, 1], [1, 2]]}, "each class at most once"),
        ({"groups": [[0, 12]]}, "out of [0, 1, 2"),
        ({"groups": []}, "at least one a task"),
        ({"groups": [[0], [1, 2]]}, "leave a task with one class"),
        ({"groups": [[0, 1]], "tasks": 2}, "groups fix the tasks"),
        ({"groups": [[0, 1]], "shuffle": True}, "groups fix the tasks"),
        ({"groups": [[0, 1, 2], [3, 4]], "setting": "domain"}, "equally many classes"),
        ({"name": "permuted-digits", "shuffle": True}, "every task has all classes"),
        ({"name": "permuted-digits", "groups": [[0, 1]]}, "every task has all classes"),
    ],
)
def test_what_cannot_be_gets_one_sentence(arguments, sentence):
    with pytest.raises(ScenarioError) as caught:
        scenarios.load(**{"name": "split-digits"} | arguments)
    assert sentence in str(caught.value)
