"""Data sets from their raw files: small ones in the true formats, and the real ones at hand."""

import os
import pickle

import pytest
import torch

from maskcl import scenarios
from maskcl.extras import install
from maskcl.scenarios import ScenarioError
from tests.scenarios import files

datasets = pytest.importorskip("torchvision.datasets", reason="torchvision reads the files")


def everything(dataset):
    """(x, y) of a whole training set."""
    return dataset.take(torch.arange(len(dataset)))


def levels(dataset):
    """Pixel values 0 to 255 of the first pixel of each image, in every channel."""
    return (everything(dataset)[0][:, :, 0, 0] * 255).round().int().tolist()


def refusal(*arguments, **named):
    with pytest.raises(ScenarioError) as caught:
        scenarios.load(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A folder with both, whose checksums torchvision takes for the published ones."""
    for kind, classes in ((datasets.CIFAR10, 10), (datasets.CIFAR100, 100)):
        for name, table in files.write_cifar(tmp_path, kind, classes).items():
            monkeypatch.setattr(kind, name, table)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "folder"), [("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_sets_in_the_format_of_mnist_lie_in_folders_of_their_own(tmp_path, name, folder):
    files.write_idx(tmp_path / folder / "raw")
    plain = scenarios.load(f"split-{name}", data=tmp_path, normalise=(0.0, 1.0))
    assert plain.sizes == [(8, 4)] * 5
    assert plain.classes == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert levels(plain.train_set(1)) == [[n] for n in (2, 3, 12, 13, 22, 23, 32, 33)]
    assert scenarios.load(f"permuted-{name}", data=tmp_path).sizes == [(40, 20)] * 10
    said = refusal("split-mnist", data=tmp_path)
    assert f"wanted {tmp_path}/MNIST/raw/train-images-idx3-ubyte.gz" in said


def test_mean_and_spread_of_the_training_images_are_taken_out_unless_told(tmp_path):
    files.write_idx(tmp_path / "KMNIST" / "raw")
    own = scenarios.load("permuted-kmnist", data=tmp_path, tasks=1)
    x = everything(own.train_set(0))[0]
    assert abs(x.mean()) < 1e-2
    assert abs(x.std() - 1) < 2e-2
    assert "mean 0.0765 and standard deviation 0.0453 taken out" in own.source
    # The test images by the training images' figures.
    test = own.test_inputs(0).take(torch.arange(20))
    assert torch.allclose(test[:, 0, 0, 0], (torch.arange(20) / 255 - 0.0765) / 0.0453)
    plain = scenarios.load("permuted-kmnist", data=tmp_path, tasks=1, normalise=(0.0, 1.0))
    assert everything(plain.train_set(0))[0].min() == 0


def test_letters_are_named_and_one_pair_of_files_is_split_by_the_seed(tmp_path):
    files.write_idx(tmp_path / "one" / "notMNIST-small" / "raw", ("t10k",), count=200)
    files.write_idx(tmp_path / "two" / "notMNIST" / "raw")
    two = scenarios.load("split-notmnist", data=tmp_path / "two")
    assert two.sizes == [(8, 4)] * 5
    made = [scenarios.load("split-notmnist", data=tmp_path / "one", seed=s) for s in (0, 0, 1)]
    assert made[0].sizes == [(16, 4)] * 5
    assert made[0].detail["class_names"] == list("ABCDEFGHIJ")
    same, again, other = (everything(scenario.train_set(0))[0] for scenario in made)
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_usps_is_read_as_it_is(tmp_path):
    files.write_usps(tmp_path / "USPS")
    scenario = scenarios.load("split-usps", data=tmp_path, normalise=(0.0, 1.0))
    assert scenario.input_shape == (1, 16, 16)
    assert scenario.sizes == [(8, 4)] * 5
    # -1 + n / 100 between -1 and 1 is n / 200 between 0 and 1; label n % 10 + 1 is class n % 10.
    wanted = [[int(n / 200 * 255)] for n in (2, 3, 12, 13, 22, 23, 32, 33)]
    assert levels(scenario.train_set(1)) == wanted
    assert scenario.score(1, torch.tensor([0, 1, 0, 1])) == 1.0
    (tmp_path / "USPS" / "usps.t.bz2").write_bytes(b"no bz2")
    assert f"{tmp_path}/USPS/usps.t.bz2 cannot be read" in refusal("split-usps", data=tmp_path)
    (tmp_path / "USPS" / "usps.t.bz2").unlink()
    wanted = f"missing file: wanted {tmp_path}/USPS/usps.t.bz2"
    assert refusal("permuted-usps", data=tmp_path) == wanted


@pytest.mark.parametrize(("classes", "tasks", "default"), [(10, 2, 5), (100, 20, 10)])
def test_cifar_is_cut_by_class_and_normalised_by_channel(cifar, classes, tasks, default):
    name = f"split-cifar{classes}"
    assert scenarios.load(name, data=cifar).num_tasks == default
    scenario = scenarios.load(name, data=cifar, tasks=tasks, normalise=(0.0, 1.0))
    assert scenario.input_shape == (3, 32, 32)
    batches = 5 if classes == 10 else 1
    per_task = classes // tasks
    assert scenario.sizes == [(2 * batches * per_task, per_task)] * tasks
    assert levels(scenario.train_set(1))[0] == [per_task, 100, 200]
    assert scenario.detail["class_names"][-1] == f"class-{classes - 1}"
    x = everything(scenarios.load(name, data=cifar, tasks=1).train_set(0))[0]
    assert abs(x.mean(dim=(0, 2, 3))[0]) < 1e-2
    assert x[:, 1:].abs().max() < 1e-3  # of one colour
    # The folder itself does as well.
    inside = cifar / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    assert scenarios.load(name, data=inside).sizes == scenarios.load(name, data=cifar).sizes


class Bomb:
    """What a pickle can do to whoever reads it."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("file", ["test_batch", "data_batch_3", "batches.meta"])
def test_no_pickle_is_read_unless_its_checksum_is_the_published_one(cifar, file):
    path = cifar / "cifar-10-batches-py" / file
    path.write_bytes(pickle.dumps(Bomb()))
    assert f"{path} is damaged or not the published file" in refusal("split-cifar10", data=cifar)
    path.unlink()
    assert f"missing file: wanted {path}" in refusal("split-cifar10", data=cifar)


def test_svhn_has_zero_for_ten_and_its_checksums_are_checked(tmp_path, monkeypatch):
    pytest.importorskip("scipy", reason="SVHN's files are read with scipy")
    table = files.write_svhn(tmp_path / "svhn", datasets.SVHN)
    monkeypatch.setattr(datasets.SVHN, "split_list", {**datasets.SVHN.split_list, **table})
    scenario = scenarios.load("split-svhn", data=tmp_path, normalise=(0.0, 1.0))
    assert scenario.input_shape == (3, 32, 32)
    assert scenario.sizes == [(8, 4)] * 5
    assert levels(scenario.train_set(0))[:3] == [[0] * 3, [1] * 3, [10] * 3]
    assert scenario.train_set(0).take(torch.arange(3))[1].tolist() == [0, 1, 0]
    path = tmp_path / "svhn" / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    said = refusal("permuted-svhn", data=tmp_path)
    assert f"{path} is damaged or not the published file: its MD5 is not" in said
    assert refusal("split-svhn", data=tmp_path / "svhn" / "x").endswith("is not a folder")
    assert "looked in" in refusal("split-cifar10", data=tmp_path)


@pytest.mark.parametrize("annotated", [True, False])
def test_tiny_imagenet_has_its_val_folder_as_test(tmp_path, annotated):
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for label in range(20):
        wnid = f"n{label:08}"
        for n in range(2):
            colour = label if n else (label, 0, 9)  # some are grey
            files.write_image(root / "train" / wnid / "images" / f"{n}.png", colour, (64, 64))
        where = root / "val" / ("images" if annotated else wnid) / f"val_{label}.png"
        files.write_image(where, (label, 0, 9), (64, 64))
        lines.append(f"val_{label}.png\t{wnid}\t0\t0\t63\t63\n")
    if annotated:
        (root / "val" / "val_annotations.txt").write_text("".join(reversed(lines)))
    scenario = scenarios.load("split-tiny-imagenet", data=tmp_path, normalise=(0.0, 1.0))
    assert scenario.input_shape == (3, 64, 64)
    assert scenario.sizes == [(4, 2)] * 10
    assert levels(scenario.train_set(9))[:2] == [[18, 0, 9], [18, 18, 18]]
    found = (scenario.test_inputs(9).take(torch.arange(2))[:, 0, 0, 0] * 255).round().tolist()
    labels = torch.tensor([int(level) - 18 for level in found])
    assert scenario.score(9, labels) == 1.0
    if annotated:
        (root / "val" / "val_annotations.txt").write_text("val_0.png\tn99999999\n")
        assert "val_annotations.txt cannot be read" in refusal("split-tiny-imagenet", data=tmp_path)
        (root / "val" / "val_annotations.txt").unlink()
        wanted = f"missing file: wanted {root / 'val' / 'val_annotations.txt'}"
        assert refusal("split-tiny-imagenet", data=tmp_path) == wanted
    assert "tiny-imagenet-200/train" in refusal("split-tiny-imagenet", data=tmp_path / "..")


@pytest.mark.parametrize(
    "name", ["split-usps", "permuted-kmnist", "split-cifar100", "split-svhn", "images", "sequence"]
)
def test_without_a_folder_the_option_is_named(name):
    named = {"datasets": ["usps"]} if name == "sequence" else {}
    assert refusal(name, **named) == f"{name} reads files: say where they are with --data DIR"


def test_without_torchvision_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    import sys

    files.write_image(tmp_path / "a" / "0.png", 0, (4, 4))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    for name in ("split-usps", "split-cifar10", "split-svhn", "images"):
        assert install("vision") in refusal(name, data=tmp_path)


@pytest.mark.skipif("MASKCL_DATA" not in os.environ, reason="MASKCL_DATA names no data folder")
def test_real_files():
    data = os.environ["MASKCL_DATA"]
    usps = scenarios.load("split-usps", data=data, tasks=1)
    assert usps.sizes == [(7291, 2007)]
    assert abs(everything(usps.train_set(0))[0].mean()) < 1e-3
    letters = scenarios.load("split-notmnist", data=data)
    assert letters.sizes == [(1600, 400)] * 5
    both = scenarios.load("sequence", data=data, datasets=["usps", "notmnist"])
    assert both.sizes == [(7291, 2007), (8000, 2000)]
    assert both.input_shape == (3, 32, 32)
