"""Scenarios from a person's own datasets."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)

from maskcl.scenarios import ItemError, ScenarioError, from_datasets, split_datasets


class Listed(Dataset):
    """Items one by one, labels as plain ints, no ``targets``."""

    def __init__(self, labels, shape=(2,)):
        self.items = [(torch.full(shape, float(i)), label) for i, label in enumerate(labels)]
        self.reads = 0

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.reads += 1
        return self.items[index]


class Stored(Listed):
    """The same with its labels beside, under any name."""

    def __init__(self, labels, name="targets", values=None, **more):
        super().__init__(labels)
        setattr(self, name, list(labels) if values is None else values)
        vars(self).update(more)


class Wrapped(Dataset):
    """Someone's wrapper, which changes inputs alone."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x, y = self.dataset[index]
        return x + 1, y


OK = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))


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
    assert torch.equal(scenario.test_inputs(0)[1], torch.tensor([1.0, 1.0]))


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


def test_tasks_of_one_class_are_where_classes_grow():
    pairs = [(Listed([4, 4]), Listed([4])), (Listed([2]), Listed([2]))]
    assert from_datasets(pairs, setting="class").classes_per_task == [1, 2]
    assert from_datasets(pairs, setting="domain").classes_per_task == [2, 2]
    with pytest.raises(ScenarioError, match="task 0 has the class 4 alone"):
        from_datasets(pairs)
    for setting in ("class", "domain", "task"):
        with pytest.raises(ScenarioError, match="the training set has the class 4 alone"):
            from_datasets(pairs[:1], setting=setting)


LABELS = [2, 5, 2, 7, 5, 2]
PART = [4, 3, 1]


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda d: d, LABELS),
        (lambda d: Subset(d, PART), [5, 7, 5]),
        (lambda d: Subset(Subset(d, PART), [2, 1]), [5, 7]),
        (lambda d: ConcatDataset([d, Subset(d, PART)]), [*LABELS, 5, 7, 5]),
        (lambda d: Subset(ConcatDataset([d, Wrapped(d)]), [11, 0, 3]), [2, 2, 7]),
        (lambda d: Wrapped(Subset(d, PART)), [5, 7, 5]),
        (lambda d: random_split(Wrapped(d), [6, 0])[0], None),
    ],
    ids=["plain", "subset", "nested", "concat", "mixed", "wrapper", "split"],
)
@pytest.mark.parametrize(
    "stored",
    [
        lambda: Stored(LABELS),
        lambda: Stored(LABELS, values=np.array(LABELS, np.uint8)),
        lambda: Stored(LABELS, values=torch.tensor(LABELS)),
        lambda: Stored(LABELS, "labels"),
        lambda: Stored(LABELS, "samples", [("a file", label) for label in LABELS]),
        lambda: Stored(LABELS, values=["2", "5", "2", "7", "5", "2"], target_transform=int),
    ],
    ids=["list", "array", "tensor", "labels", "samples", "transform"],
)
def test_labels_are_read_without_the_inputs(stored, make, wanted):
    dataset, test = stored(), stored()
    scenario = from_datasets([(make(dataset), make(test))])
    assert dataset.reads == test.reads == 1
    given = [scenario.classes[0][label] for label in labels_of(scenario, 0)]
    assert sorted(given) == sorted(LABELS) if wanted is None else given == wanted


def test_targets_that_items_do_not_have_are_left_alone():
    dataset = Stored([3, 1, 1], values=[1, 1, 3])
    scenario = from_datasets([(dataset, dataset)])
    assert labels_of(scenario, 0) == [1, 0, 0]
    later = Stored([1, 3, 1], values=[1, 3, 3])
    train = from_datasets([(later, later)], name="mine").train_set(0)
    assert train[1][1] == 1
    with pytest.raises(ItemError, match=r"task 0's training set: item 2 has the target 1, .* 3;"):
        train[2]


def test_tensors_in_parts_are_taken_by_the_batch():
    x, y = torch.rand(6, 3), torch.tensor([4, 1, 4, 1, 4, 1])
    whole = TensorDataset(x, y)
    stacked = StackDataset(x, y)
    rows = torch.tensor([2, 0, 3])
    for dataset, order in [
        (whole, range(6)),
        (Subset(whole, [-1, 2, 1, 0]), [5, 2, 1, 0]),
        (ConcatDataset([Subset(whole, [1, 0]), stacked]), [1, 0, *range(6)]),
        (Subset(ConcatDataset([whole, whole]), np.array([7, 11, 4, 2])), [1, 5, 4, 2]),
    ]:
        scenario = from_datasets([(dataset, whole)])
        found, labels = scenario.train_set(0).take(rows)
        wanted = torch.tensor(list(order))[rows]
        assert torch.equal(found, x[wanted])
        assert torch.equal(labels, (y[wanted] == 4).long())
        assert torch.equal(scenario.train_set(0)[2][0], x[order[2]])
    assert torch.equal(scenario.test_inputs(0).take(rows), x[rows])
    assert [len(part) for part in (scenario.train_set(0), list(scenario.test_inputs(0)))] == [4, 6]


@pytest.mark.parametrize(
    "labels",
    [
        torch.tensor([[3], [1]]),
        torch.tensor([3.0, 1.0]),
        torch.tensor([3, 1], dtype=torch.uint8),
        torch.tensor([3.0, 1.0], dtype=torch.bfloat16),
    ],
)
def test_whole_numbers_of_any_type_are_labels(labels):
    data = TensorDataset(torch.zeros(2, 1), labels)
    assert from_datasets([(data, data)]).classes == [[1, 3]]
    items = Listed(list(labels))
    assert from_datasets([(items, items)]).classes == [[1, 3]]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0, 1, 0.5], "item 2 has the label 0.5, wanted a whole number; .* problems.Regression"),
        ([0, 1, float("nan")], "item 2 has the label nan"),
        ([0, float("inf"), 1], "item 1 has the label inf"),
        ([0, 1j, 1], "item 0 has the label 0j|item 1 has the label 1j"),
        (["cat", "dog", "cat"], "item 0 has the label 'cat'"),
        ([0, b"1", 1], "item 1 has the label b'1'"),
        ([0, None, 1], "item 1 has the label None"),
        ([0, [1, 2], 1], r"item 1 has the label \[1, 2\]"),
        ([True, False, True], "item 0 has the label True, .* 1 for True"),
        ([0, 2**63, 1], "item 1 has the label 9.?22337.*, .* fits into int64"),
        ([0, 10**5000, 1], "item 1 has the label an integer of over 30 digits"),
        ([0.0, 1e30, 1.0], "item 1 has the label 1e.30, .* fits into int64"),
        ([[0, 1], [1, 0], [1, 1]], r"labels have the shape \(2,\) .* problems.MultiLabel"),
        ([0, object(), 1], "item 1 has the label <object"),
    ],
)
def test_other_labels_are_named_in_one_sentence(values, shown):
    for dataset in (Listed(values), Stored(values), Subset(Stored(values), range(3))):
        for pair, part in (((dataset, OK), "training"), ((OK, dataset), "test")):
            with pytest.raises(ScenarioError, match=f"mine: task 1's {part} set: {shown}") as error:
                from_datasets([(OK, OK), pair], name="mine")
            assert "\n" not in str(error.value)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(Listed([0, 1]))


class Endless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(2), index % 2


class Broken(Stored):
    def __getitem__(self, index):
        raise FileNotFoundError("no image there")


def of(x):
    return TensorDataset(x, OK.tensors[1])


def filled(value, place=2):
    x = torch.zeros(4, 2)
    x[place, 1] = value
    return of(x)


def mixed(count=3):
    found = Listed([0, 1, 0])
    found.items[2] = (torch.zeros(count), 0)
    return found


@pytest.mark.parametrize(
    ("tasks", "sentence"),
    [
        ([], "needs at least one task"),
        ([(Listed([]), Listed([1]))], "task 0's training set has no examples"),
        ([(Listed([0, 1]), Listed([]))], "task 0's test set has no examples"),
        ([(Listed([0, 1]), Listed([2]))], "task 0 has test label 2, which its training set lacks"),
        ([(Listed([0]), Listed([0], (3,)))], r"shape \(2,\) in task 0's training set and \(3,\)"),
        (
            [(TensorDataset(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1)), OK)],
            "torch.int64",
        ),
        ([OK, OK], "task 0 is one TensorDataset, wanted a list with a .train, test. pair"),
        (OK, "tasks is of type TensorDataset, wanted a list"),
        ([(OK, OK, OK)], "task 0 is 3 things"),
        (5, "tasks is of type int"),
        ([(OK.tensors[0], OK.tensors[1])], "task 0's training set is of type Tensor"),
        ([(OK, DataLoader(OK))], "task 0's test set is of type DataLoader"),
        ([(OK, Stream())], "task 0's test set is the iterable dataset Stream"),
        ([(Endless(), OK)], "task 0's training set is a Endless without a length"),
        ([(OK, None)], "task 0's test set is of type NoneType"),
        ([(Broken([0, 1]), OK)], "item 0 cannot be read: FileNotFoundError: no image there"),
        ([(TensorDataset(torch.zeros(2, 2)), OK)], "item 0 is of type tuple of 1, wanted .x, y."),
        ([({"x": 1}, OK)], "task 0's training set is of type dict"),
        ([(filled(torch.nan), OK)], "training set: item 2 has nan among its inputs"),
        ([(OK, Subset(filled(-torch.inf), [3, 2]))], "test set: item 1 has -inf among its inputs"),
        ([(OK, Subset(OK, [1, 9]))], "test set: items 0 to 1 cannot be read: IndexError"),
        ([(OK, Subset(Listed([0, 1]), [1, 9]))], "test set: item 1 cannot be read: IndexError"),
        ([(mixed(), OK)], r"training set: item 2 has the shape \(3,\), item 0 \(2,\)"),
        ([([("an image", 0), ("an image", 1)], OK)], "got str at item 0; .* ToTensor"),
        (
            [(OK, TensorDataset(OK.tensors[0].double(), OK.tensors[1]))],
            "32 in .*float64 in",
        ),
        (
            [(TensorDataset(OK.tensors[0].to_sparse(), OK.tensors[1]), OK)],
            "dense .*sparse",
        ),
        ([(of(OK.tensors[0].to("meta")), OK)], "dense .*meta"),
    ],
)
def test_bad_datasets_are_refused(tasks, sentence):
    with pytest.raises(ScenarioError, match=sentence) as error:
        from_datasets(tasks)
    assert "\n" not in str(error.value)


def test_items_of_another_shape_are_told_when_they_are_read():
    dataset = mixed()
    dataset.targets = [0, 1, 0]
    train = from_datasets([(dataset, OK)]).train_set(0)
    assert train[1][1] == 1
    with pytest.raises(ItemError, match=r"training set: item 2 has the shape \(3,\)"):
        train[2]


def test_items_of_another_dtype_are_told_when_they_are_read():
    dataset = Stored([0, 1, 0])
    dataset.items[2] = (torch.zeros(2, dtype=torch.float64), 0)
    train = from_datasets([(dataset, OK)]).train_set(0)
    with pytest.raises(ItemError, match=r"training set: item 2 is torch.float64, item 0 torch.fl"):
        train[2]


def test_items_bring_no_gradients():
    dataset = Stored([0, 1])
    dataset.items = [(x.requires_grad_(), y) for x, y in dataset.items]
    x, _ = from_datasets([(dataset, OK)]).train_set(0)[1]
    assert not x.requires_grad


def test_a_table_of_targets_is_no_list_of_them():
    dataset = Stored([1, 0, 1, 0], values={1: "a", 0: "b", 2: "c", 3: "d"})
    scenario = from_datasets([(dataset, OK)])
    assert scenario.classes == [[0, 1]]
    assert labels_of(scenario, 0) == [1, 0, 1, 0]


def test_unknown_setting_is_refused():
    with pytest.raises(ScenarioError, match="settings task, domain, class, not 'time'"):
        from_datasets([(Listed([0]), Listed([0]))], setting="time")


def test_a_pair_is_cut_by_class_without_reading_it():
    train, test = Stored([7, 3, 5, 9, 3]), Stored([9, 5, 3, 7])
    scenario = split_datasets(train, test, name="mine", source="a folder")
    assert scenario.classes == [[3, 5], [7, 9]]
    assert train.reads == test.reads == 1
    assert labels_of(scenario, 0) == [0, 1, 0]
    assert [int(x[0]) for x, _ in scenario.train_set(1)] == [0, 3]
    assert [int(x[0]) for x in scenario.test_inputs(0)] == [1, 2]
    assert scenario.score(0, torch.tensor([1, 0])) == 1.0
    assert (scenario.source, scenario.detail) == ("a folder", {})
    listed = split_datasets(train, test, groups=[[9], [5, 3]], setting="class")
    assert listed.classes_per_task == [1, 3]
    assert labels_of(listed, 1) == [2, 1, 2]
    assert listed.detail["order"] == "classes as given; in no task 7"
    one, two = (split_datasets(train, test, shuffle=True, seed=1) for _ in range(2))
    assert one.classes == two.classes


def test_a_pair_in_memory_is_cut_by_index():
    x, y = torch.rand(8, 3), torch.tensor([0, 1, 2, 3] * 2)
    data = TensorDataset(x, y)
    scenario = split_datasets(data, data, tasks=2)
    found, labels = scenario.train_set(1).take(torch.tensor([2, 1]))
    assert torch.equal(found, x[[6, 3]])
    assert labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tasks": 0}, "tasks is 0, wanted a whole number"),
        ({"tasks": 3}, "mine: 3 tasks of 4 classes leave a task with one class"),
        ({"tasks": 9}, "mine has 4 classes, which cannot be cut into 9 tasks"),
        ({"groups": [[0, 1], [1, 2]]}, "mine: groups must name each class at most once"),
        ({"groups": [["a"]]}, "mine: groups must be lists of classes"),
        ({"groups": 3}, "mine: groups must be lists of classes"),
        ({"groups": [[0, 1], [2, 3]], "shuffle": True}, "mine: groups fix the tasks"),
        ({"tasks": 3, "setting": "domain"}, "one class"),
        ({"groups": [[0, 1, 2], [3, 0.5]]}, "mine: groups must be lists of classes"),
        ({"shuffle": True, "seed": -1}, "mine: seed is -1"),
        ({"setting": "time"}, "mine has the settings"),
    ],
)
def test_what_cannot_be_cut_gets_one_sentence(arguments, sentence):
    data = Stored([0, 1, 2, 3])
    with pytest.raises(ScenarioError, match=sentence):
        split_datasets(data, data, name="mine", **arguments)
