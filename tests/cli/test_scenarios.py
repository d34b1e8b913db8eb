"""Image scenarios on the command line: defaults that suit them, files, what is refused."""

import json

import pytest

from maskcl import cli, scenarios
from maskcl.cli.baselines import FinetuneOptions
from maskcl.cli.hat import HATOptions
from maskcl.cli.mas import MASOptions
from maskcl.cli.pretrain import PretrainOptions
from tests.scenarios import files

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("torchvision", reason="torchvision reads the files")

QUICK = ["--model", "mlp", "--hidden", 8, "--epochs", 1]


def run(*arguments):
    return cli.main([*map(str, arguments)])


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


@pytest.fixture
def folder(tmp_path):
    """Two classes a task, two tasks; dark and bright."""
    for k, name in enumerate("abcd"):
        for n in range(10):
            shade = (100 * (k % 2) + n, n, 50)
            files.write_image(tmp_path / "data" / name / f"{n}.png", shade, (6, 6))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("scenario", "model", "epochs", "batch_size", "lr"),
    [
        ("split-digits", "mlp", 10, 16, 0.005),
        ("split-mnist", "mlp", 10, 64, 0.005),
        ("split-usps", "mlp", 10, 64, 0.005),
        ("permuted-notmnist", "mlp", 10, 64, 0.005),
        ("split-cifar100", "conv", 20, 64, 0.001),
        ("split-svhn", "conv", 20, 64, 0.001),
        ("split-tiny-imagenet", "resnet18", 20, 64, 0.001),
        ("images", "conv", 20, 64, 0.001),
        ("sequence", "conv", 20, 64, 0.001),
        ("permuted-cifar10", "mlp", 20, 64, 0.005),
        ("graphs-digits", "gcn", 20, 16, 0.005),
    ],
)
def test_defaults_suit_the_scenario_and_give_way(scenario, model, epochs, batch_size, lr):
    made = HATOptions(scenario=scenario, out="x")
    assert (made.model, made.epochs, made.batch_size, made.lr) == (model, epochs, batch_size, lr)
    own = {"epochs": 3, "batch_size": 7, "lr": 0.1}
    asked = HATOptions(scenario=scenario, out="x", **own)
    assert {name: getattr(asked, name) for name in own} == own
    assert FinetuneOptions(scenario=scenario, out="x").model == model
    if scenario in scenarios.image_names.IMAGES:
        assert MASOptions(scenario=scenario, out="x", model="conv").model == "conv"
        assert PretrainOptions(scenario=scenario, out="x").model == model


def test_help_names_the_scenarios_without_a_list_of_all(capsys):
    assert run("train", "hat", "--help") == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "split-SET or permuted-SET (as split-digits), SET out of digits, mnist" in said
    assert "split-tiny-imagenet, images, sequence; of graphs nodes-digits" in said
    assert "permuted-kmnist" not in said


def test_a_folder_of_images_is_learned_and_its_classes_keep_their_names(tmp_path, folder):
    out = tmp_path / "run"
    own = ["--tasks", 2, "--size", 4, "--epochs", 30, "--lr", 0.02, "--out", out]
    assert run("train", "hat", "--scenario", "images", "--data", folder, *QUICK, *own) == 0
    result = result_of(out)
    assert result["scenario"]["detail"]["class_names"] == list("abcd")
    assert result["scenario"]["input_shape"] == [3, 4, 4]
    assert result["metrics"]["ACC"]["value"] > 0.9
    assert run("train", "hat", "--out", out, "--resume", "--size", 5) == 2


@pytest.mark.parametrize("method", ["mas", "piggyback", "joint"])
def test_a_sequence_is_learned_by_every_method(tmp_path, method):
    files.write_idx(tmp_path / "KMNIST" / "raw")
    files.write_usps(tmp_path / "USPS")
    own = ["--datasets", "usps, kmnist", "--size", 8, "--out", tmp_path / "run"]
    base = ["--base", "random"] if method == "piggyback" else []
    arguments = ["--scenario", "sequence", "--data", tmp_path, *QUICK, *own, *base]
    assert run("train", method, *arguments) == 0
    assert result_of(tmp_path / "run")["scenario"]["detail"]["datasets"] == ["usps", "kmnist"]


def test_a_run_goes_on_with_another_data_set(tmp_path):
    files.write_idx(tmp_path / "KMNIST" / "raw")
    files.write_idx(tmp_path / "notMNIST" / "raw")
    first = ["--scenario", "sequence", "--datasets", "kmnist", "--size", 8, "--data", tmp_path]
    assert run("train", "hat", *first, *QUICK, "--out", tmp_path / "one") == 0
    second = ["--scenario", "sequence", "--datasets", "notmnist", "--size", 8, "--data", tmp_path]
    arguments = [*second, "--from", tmp_path / "one", "--out", tmp_path / "two"]
    assert run("train", "hat", *arguments) == 0
    assert result_of(tmp_path / "two")["scenario"]["detail"]["datasets"] == ["notmnist"]


def test_a_base_is_pretrained_on_the_same_folder(tmp_path, folder):
    images = ["--scenario", "images", "--data", folder, "--size", 4]
    small = ["--model", "mlp", "--hidden", 8, "--epochs", 1]
    assert run("pretrain", *images, *small, "--out", tmp_path / "base") == 0
    arguments = [*images, "--tasks", 2, "--epochs", 1, "--base", tmp_path / "base"]
    assert run("train", "piggyback", *arguments, "--out", tmp_path / "run") == 0
    other = [*images[:-1], 5, "--tasks", 2, "--base", tmp_path / "base", "--out", tmp_path / "no"]
    assert run("train", "piggyback", *other) == 2


BAD = [
    (["images"], "images reads files: say where they are with --data "),
    (["images", "--data", "DIR/a/0.png"], "is not a folder"),
    (["images", "--data", "DIR", "--size", "0"], "size must be at least 1"),
    (["images", "--data", "DIR", "--datasets", "usps"], "images is one data set"),
    (["images", "--data", "DIR", "--model", "conv", "--size", "2"], "conv"),
    (["split-cifar10", "--data", "DIR"], "missing file: wanted DIR/cifar-10-batches-py"),
    (["split-svhn", "--data", "DIR"], "missing file: wanted DIR/svhn/train_32x32.mat"),
    (["split-tiny-imagenet", "--data", "DIR"], "missing folder: wanted DIR/tiny-imagenet-200"),
    (["split-usps", "--data", "DIR", "--size", "8"], "split-usps has a size of its own"),
    (["sequence", "--data", "DIR"], "sequence: name the data sets, out of digits, mnist"),
    (["sequence", "--data", "DIR", "--datasets", "usps,,"], "unknown data set ''"),
    (["nodes-digits", "--datasets", "usps"], "nodes-digits is made of graphs"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_what_cannot_be_is_said_in_one_sentence(tmp_path, folder, capsys, arguments, sentence):
    own = [argument.replace("DIR", str(folder)) for argument in arguments]
    assert run("train", "hat", "--scenario", *own, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("maskcl: ")
    assert sentence.replace("DIR", str(folder)) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_named_before_anything_is_written(tmp_path, folder, capsys):
    (folder / "c" / "7.png").write_bytes(b"\x89PNG")
    arguments = ["--scenario", "images", "--data", folder, *QUICK, "--out", tmp_path / "run"]
    assert run("train", "finetune", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"maskcl: {folder / 'c' / '7.png'} cannot be read")
    assert not (tmp_path / "run").exists()
