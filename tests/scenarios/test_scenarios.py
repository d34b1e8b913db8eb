"""Named scenarios: how data are cut, what the seed fixes, what is refused."""

import pytest
import torch

from maskcl import scenarios
from maskcl.scenarios import ScenarioError, sources, vision


def everything(dataset):
    """(x, y) of a whole training set."""
    return dataset.take(torch.arange(len(dataset)))


def test_split_digits_has_five_tasks_of_two_classes_with_local_labels():
    scenario = scenarios.load("split-digits")
    assert scenario.num_tasks == 5
    assert scenario.setting.name == "task"
    assert scenario.classes == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert scenario.classes_per_task == [2] * 5
    for task in range(5):
        x, y = everything(scenario.train_set(task))
        assert x.dtype == torch.float32
        assert x.shape[1:] == scenario.input_shape == (1, 8, 8)
        assert x.min() == 0.0
        assert x.max() == 1.0
        assert y.dtype == torch.int64
        assert y.unique().tolist() == [0, 1]
        assert scenario.sizes[task] == (len(x), len(scenario.test_inputs(task)))
    assert sum(train + test for train, test in scenario.sizes) == 1797


def test_training_images_carry_the_right_labels():
    from sklearn.datasets import load_digits

    images, target = load_digits(return_X_y=True)
    known = {tuple(row): int(label) for row, label in zip(images, target, strict=True)}
    scenario = scenarios.load("split-digits", seed=3)
    for task, classes in enumerate(scenario.classes):
        x, y = everything(scenario.train_set(task))
        found = [known[tuple((row * 16).flatten().tolist())] for row in x]
        assert found == [classes[label] for label in y.tolist()]


def test_train_and_test_share_no_row_and_the_split_depends_on_the_seed_alone():
    labels = torch.arange(10).repeat_interleave(50)
    train, test = sources.stratified_split(labels, 0.2, seed=0)
    assert sorted(train.tolist() + test.tolist()) == list(range(500))
    assert labels[test].bincount().tolist() == [10] * 10
    again = sources.stratified_split(labels, 0.2, seed=0)[1]
    other = sources.stratified_split(labels, 0.2, seed=1)[1]
    assert torch.equal(test, again)
    assert not torch.equal(test, other)


def test_the_split_of_seed_0_never_moves():
    """A published figure names the seed; these rows are what it means."""
    _, test = sources.stratified_split(torch.arange(10).repeat_interleave(5), 0.2, seed=0)
    assert test.tolist() == [2, 5, 14, 15, 20, 29, 33, 37, 43, 49]


def test_one_item_equals_the_same_row_of_a_batch():
    train = scenarios.load("permuted-digits", tasks=2).train_set(1)
    x, y = train.take(torch.tensor([4, 7]))
    assert torch.equal(train[7][0], x[1])
    assert torch.equal(train[7][1], y[1])
    with pytest.raises(IndexError):
        train[len(train)]


def test_test_inputs_have_no_labels():
    scenario = scenarios.load("split-digits")
    inputs = scenario.test_inputs(0)
    assert isinstance(inputs[0], torch.Tensor)
    assert inputs[0].shape == (1, 8, 8)
    assert isinstance(inputs.take(torch.tensor([0, 1])), torch.Tensor)


def test_score_counts_right_predictions():
    images = sources.digits(seed=0)
    scenario = scenarios.load("split-digits", seed=0)
    labels = images.labels[images.test]
    truth = labels[(labels == 2) | (labels == 3)] - 2
    assert scenario.score(1, truth) == 1.0
    assert scenario.score(1, 1 - truth) == 0.0
    wrong = truth.clone()
    wrong[:9] = 1 - wrong[:9]
    assert scenario.score(1, wrong) == pytest.approx(1 - 9 / len(truth))


def test_score_refuses_what_is_not_one_label_an_example():
    scenario = scenarios.load("split-digits")
    count = scenario.sizes[0][1]
    with pytest.raises(ValueError, match=f"has {count} test examples, predictions has shape"):
        scenario.score(0, torch.zeros(count - 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"integer tensor, got torch\.float32"):
        scenario.score(0, torch.zeros(count))
    with pytest.raises(IndexError, match="tasks 0 to 4, got -1"):
        scenario.score(-1, torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize(("tasks", "sizes"), [(2, [5, 5]), (3, [4, 3, 3]), (1, [10])])
def test_other_numbers_of_tasks(tasks, sizes):
    scenario = scenarios.load("split-digits", tasks=tasks)
    assert [len(part) for part in scenario.classes] == sizes
    assert [label for part in scenario.classes for label in part] == list(range(10))


def test_domain_setting_shares_labels_and_class_setting_grows():
    domain = scenarios.load("split-digits", setting="domain")
    assert everything(domain.train_set(4))[1].unique().tolist() == [0, 1]
    growing = scenarios.load("split-digits", setting="class")
    assert growing.classes_per_task == [2, 4, 6, 8, 10]
    assert everything(growing.train_set(4))[1].unique().tolist() == [8, 9]
    permuted = scenarios.load("permuted-digits", setting="class", tasks=3)
    assert permuted.classes_per_task == [10, 20, 30]
    assert everything(permuted.train_set(2))[1].unique().tolist() == list(range(20, 30))


def test_permuted_first_task_is_the_image_itself_and_others_are_its_pixels_moved():
    scenario = scenarios.load("permuted-digits", seed=5)
    assert scenario.num_tasks == 10
    assert scenario.setting.name == "domain"
    plain = everything(scenario.train_set(0))[0]
    digits = sources.digits(seed=5)
    assert torch.equal(plain, digits.pixels[digits.train] / 16)
    for task in (1, 9):
        moved, y = everything(scenario.train_set(task))
        order = vision.permutation(5, task, 64)
        assert torch.equal(moved.flatten(1), plain.flatten(1)[:, order])
        assert torch.equal(y, digits.labels[digits.train])
        assert sorted(order.tolist()) == list(range(64))


def test_permutation_is_a_function_of_seed_and_task():
    first = vision.permutation(0, 1, 64)
    assert torch.equal(first, vision.permutation(0, 1, 64))
    assert not torch.equal(first, vision.permutation(0, 2, 64))
    assert not torch.equal(first, vision.permutation(1, 1, 64))
    # More tasks leave the earlier ones as they were.
    few, many = (scenarios.load("permuted-digits", tasks=n).train_set(2) for n in (3, 6))
    assert torch.equal(few[0][0], many[0][0])


def test_description_is_json_and_prints_in_one_line():
    import json

    description = scenarios.load("split-digits", tasks=2, seed=4).describe()
    assert json.loads(json.dumps(description)) == description
    line = scenarios.summary(description)
    assert line.startswith("split-digits, task setting, seed 4: 2 tasks, classes 0-4 | 5-9, ")
    assert line.endswith("717 to 721 training and 179 to 180 test examples a task")
    assert "\n" not in line
    permuted = scenarios.summary(scenarios.load("permuted-digits").describe())
    assert "classes 0-9 each" in permuted


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "split-digit"}, "unknown scenario 'split-digit': known are split-digits"),
        ({"name": "split-digits", "tasks": 11}, "10 classes, which cannot be cut into 11 tasks"),
        ({"name": "split-digits", "tasks": 6}, "leave a task with one class"),
        ({"name": "split-digits", "tasks": 0}, "must be 1 to 1000, got 0"),
        ({"name": "split-digits", "tasks": 3, "setting": "domain"}, "equally many classes"),
        ({"name": "split-digits", "setting": "time"}, "settings task, domain, class, not 'time'"),
        ({"name": "split-digits", "seed": -1}, "seed must be 0 to"),
        ({"name": "split-digits", "data": "/tmp"}, "reads no --data"),
        ({"name": "split-mnist"}, "say where they are with --data DIR"),
        ({"name": "split-mnist", "data": "/does/not/exist"}, "/does/not/exist is not a folder"),
    ],
)
def test_bad_requests_get_one_sentence(arguments, sentence):
    with pytest.raises(ScenarioError) as caught:
        scenarios.load(**arguments)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
