"""Scenarios from a person's own datasets."""

import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from maskcl.scenarios import ScenarioError, from_datasets


class Listed(Dataset):
    """Items one by one, labels as plain ints, no ``targets``."""

    def __init__(self, labels, shape=(2,)):
        self.items = [(torch.full(shape, float(label)), label) for label in labels]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def labels_of(scenario, task):
    train = scenario.train_set(task)
    return [int(train[index][1]) for index in range(len(train))]


def test_task_setting_numbers_each_tasks_labels_on_their_own():
    scenario = from_datasets([(Listed([7, 3, 7]), Listed([3, 7])), (Listed([9, 5]), Listed([9]))])
    assert scenario.classes == [[3, 7], [5, 9]]
    assert scenario.input_shape == (2,)
    assert labels_of(scenario, 0) == [1, 0, 1]
    assert labels_of(scenario, 1) == [1, 0]
    assert scenario.score(0, torch.tensor([0, 1])) == 1.0
    assert scenario.score(0, torch.tensor([0, 0])) == 0.5
    assert torch.equal(scenario.test_inputs(0)[1], torch.tensor([7.0, 7.0]))


def test_domain_setting_shares_the_classes_of_all_tasks():
    pairs = [(Listed([0, 2]), Listed([2])), (Listed([2, 1]), Listed([1]))]
    scenario = from_datasets(pairs, setting="domain", name="mine")
    assert scenario.classes == [[0, 1, 2]] * 2
    assert scenario.classes_per_task == [3, 3]
    assert labels_of(scenario, 1) == [2, 1]
    assert scenario.describe()["name"] == "mine"


def test_class_setting_counts_outputs_by_first_appearance():
    pairs = [(Listed([4, 8]), Listed([8])), (Listed([8, 1]), Listed([1, 8]))]
    scenario = from_datasets(pairs, setting="class")
    assert scenario.classes_per_task == [2, 3]
    assert labels_of(scenario, 1) == [1, 2]


def test_tensor_dataset_subset_and_targets_give_the_labels():
    x, y = torch.rand(6, 3), torch.tensor([0, 1, 0, 1, 0, 1])
    whole = TensorDataset(x, y)
    assert labels_of(from_datasets([(whole, whole)]), 0) == y.tolist()
    part = Subset(whole, [1, 2])
    assert labels_of(from_datasets([(part, part)]), 0) == [1, 0]

    class Targeted(Listed):
        reads = 0

        def __init__(self, labels):
            super().__init__(labels)
            self.targets = list(labels)

        def __getitem__(self, index):
            Targeted.reads += 1
            return super().__getitem__(index)

    targeted = Targeted([2, 5, 2])
    assert labels_of(from_datasets([(targeted, targeted)]), 0) == [0, 1, 0]
    # Two looks at an input's shape and three items read above: no pass over the data for labels.
    assert Targeted.reads == 5


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([], "needs at least one task"),
        ([(Listed([]), Listed([1]))], "task 0 has no training examples"),
        ([(Listed([1]), Listed([]))], "task 0 has no test examples"),
        ([(Listed([0, 1]), Listed([2]))], "test label 2, which its training set lacks"),
        ([(Listed([0]), Listed([0], (3,)))], "inputs have shape"),
        ([(TensorDataset(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1)),) * 2], "float"),
    ],
)
def test_bad_datasets_are_refused(pairs, sentence):
    with pytest.raises(ScenarioError, match=sentence):
        from_datasets(pairs)


def test_unknown_setting_is_refused():
    with pytest.raises(ScenarioError, match="settings task, domain, class, not 'time'"):
        from_datasets([(Listed([0]), Listed([0]))], setting="time")
