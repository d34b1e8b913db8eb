"""Data sets one after the other, each a task."""

import pytest
import torch

from maskcl import scenarios
from maskcl.scenarios import ScenarioError
from tests.scenarios import files

pytest.importorskip("torchvision", reason="torchvision reads the files")

RAW = (0.0, 1.0)


@pytest.fixture
def data(tmp_path):
    """KMNIST of 4x4 pixels, notMNIST without a split, USPS."""
    files.write_idx(tmp_path / "KMNIST" / "raw")
    files.write_idx(tmp_path / "notMNIST-10k" / "raw", ("t10k",), count=200)
    files.write_usps(tmp_path / "USPS")
    return tmp_path


def load(data, *names, **named):
    return scenarios.load("sequence", data=data, datasets=names, **named)


def test_each_set_is_a_task_of_one_size_in_three_channels(data):
    scenario = load(data, "usps", "kmnist", "notmnist", "digits", normalise=RAW)
    assert scenario.num_tasks == 4
    assert scenario.setting.name == "task"
    assert scenario.classes == [list(range(10))] * 4
    assert scenario.sizes == [(40, 20), (40, 20), (80, 20), (1438, 359)]
    assert scenario.detail == {"datasets": ["usps", "kmnist", "notmnist", "digits"]}
    for task in range(4):
        x, y = scenario.train_set(task).take(torch.arange(4))
        assert x.shape == (4, 3, 32, 32)
        assert torch.equal(x[:, 0], x[:, 2])
        assert 0 <= x.min() <= x.max() <= 1
        assert y.max() < 10
    # One colour stays one colour when it is scaled.
    assert (scenario.train_set(1)[7][0] * 255).round().unique().tolist() == [7]


def test_a_few_missing_pixels_are_a_black_frame(data):
    scenario = load(data, "kmnist", size=8, normalise=RAW)
    x = scenario.train_set(0)[9][0] * 255
    assert x.shape == (3, 8, 8)
    assert torch.equal(x[:, 2:6, 2:6].round(), torch.full((3, 4, 4), 9.0))
    assert x.sum().round() == 3 * 16 * 9
    assert load(data, "kmnist", size=8, padding=1).input_shape == (3, 10, 10)


def test_each_set_is_normalised_on_its_own(data):
    scenario = load(data, "usps", "kmnist")
    for task in range(2):
        x = scenario.train_set(task).take(torch.arange(40))[0]
        assert abs(x.mean()) < 0.02
        assert abs(x.std() - 1) < 0.02


def test_order_is_as_given_or_the_seeds_and_the_first_are_taken(data):
    names = ("usps", "kmnist", "notmnist")
    orders = [load(data, *names, shuffle=True, seed=s).detail["datasets"] for s in range(5)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len(set(map(tuple, orders))) > 1
    assert load(data, *names, shuffle=True, seed=1).detail["datasets"] == orders[1]
    assert load(data, *names, tasks=2).detail["datasets"] == ["usps", "kmnist"]


def test_settings_number_the_classes(data):
    growing = load(data, "usps", "kmnist", setting="class")
    assert growing.classes_per_task == [10, 20]
    assert growing.train_set(1).take(torch.arange(10))[1].tolist() == list(range(10, 20))
    shared = load(data, "usps", "kmnist", setting="domain")
    assert shared.outputs == [10, 10]


@pytest.mark.parametrize(
    ("names", "named", "sentence"),
    [
        ((), {}, "sequence: name the data sets, out of digits, mnist, fashion-mnist"),
        (("usps", "mnisst"), {}, "unknown data set 'mnisst': known are digits"),
        (("usps", "usps"), {}, "the data set usps is named twice"),
        (("usps",), {"tasks": 2}, "has 1 data sets, which cannot be 2 tasks"),
        (("usps",), {"groups": [[0, 1]]}, "each data set is a task: groups cannot be"),
        (("mnist",), {}, "no MNIST file found: wanted"),
        (("usps",), {"size": 0}, "size must be at least 1"),
    ],
)
def test_what_cannot_be_gets_one_sentence(data, names, named, sentence):
    with pytest.raises(ScenarioError) as caught:
        load(data, *names, **named)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_options_are_refused_elsewhere(data):
    for name, named, sentence in (
        ("split-usps", {"size": 8}, "split-usps has a size of its own"),
        ("split-usps", {"datasets": ["usps"]}, "split-usps is one data set"),
        ("nodes-digits", {"size": 8}, "is made of graphs: size, datasets"),
    ):
        with pytest.raises(ScenarioError, match=sentence):
            scenarios.load(name, data=data if "usps" in name else None, **named)
    with pytest.raises(ScenarioError, match="sequence is of several data sets"):
        scenarios.load_pretraining("sequence", data=data)
