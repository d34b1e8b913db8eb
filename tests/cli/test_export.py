"""``maskcl export`` as a person uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from maskcl import cli, scenarios
from maskcl.checkpoint import load_checkpoint, save_checkpoint
from maskcl.problems import Vision

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SMALL = ["--scenario", "split-digits", "--tasks", "2", "--hidden", "16,16", "--epochs", "1"]


def maskcl(*arguments: object) -> int:
    return cli.main([str(part) for part in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert maskcl("train", "hat", *SMALL, "--out", folder / "hat") == 0
    assert maskcl("train", "mas", *SMALL, "--out", folder / "mas") == 0
    return folder


def test_a_task_becomes_a_program_that_predicts_as_the_run_does(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert maskcl("export", runs / "hat", "--task", 1, "-o", tmp_path / "task.pt2") == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'task.pt2'}: " in said
    assert "task 1, inputs 64x1x8x8, cpu" in said
    figures = {line.split()[0]: line.split() for line in said.splitlines()[1:4]}
    full = 64 * 16 + 16 + 16 * 16 + 16 + 16 * 5 + 5
    assert figures["parameters"][1] == f"{full:,}"
    assert float(figures["parameters"][3]) > 1
    program = torch.export.load(tmp_path / "task.pt2").module()
    scenario = scenarios.load("split-digits", tasks=2, seed=0)
    (x,) = Vision().test_batches(scenario.test_inputs(1), 10_000)
    predicted = program(x).argmax(1)
    result = json.loads((runs / "hat" / "result.json").read_text())
    assert scenario.score(1, predicted) == pytest.approx(result["accuracy"][1][1])


def test_any_method_and_form(runs: Path, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    out = tmp_path / "task.safetensors"
    assert maskcl("export", runs / "mas", "--task", 0, "--out", out, "--batch-size", 2) == 0
    shapes = {name: list(tensor.shape) for name, tensor in safetensors.load_file(out).items()}
    assert shapes["1.weight"] == [16, 64]
    assert shapes["5.weight"] == [5, 16]


@pytest.mark.parametrize(
    ("run", "arguments", "sentence"),
    [
        ("hat", ["--task", "2", "-o", "x.pt2"], "has tasks 0 to 1, got 2"),
        ("hat", ["--task", "0", "-o", "x.pth"], "x.pth ends in '.pth', wanted one of .pt2, .onnx"),
        ("hat", ["--task", "0", "-o", "no/x.pt2"], "cannot be made: there is no such folder"),
        ("hat", ["--task", "0", "-o", "there.pt2"], "there.pt2 exists already"),
        ("hat", ["--task", "0", "-o", f"{'x' * 300}.pt2"], "cannot be written: File name too long"),
        ("hat", ["--task", "0", "-o", "x.pt2", "--batch-size", "1"], "batch-size must be at"),
        ("none", ["--task", "0", "-o", "x.pt2"], "holds no run"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    run: str,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there.pt2").write_bytes(b"mine")
    assert maskcl("export", runs / run, *arguments) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.startswith("maskcl: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]


def test_a_task_that_is_not_finished_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "hat", tmp_path / "half")
    path = tmp_path / "half" / "checkpoint.safetensors"
    checkpoint = load_checkpoint(path)
    checkpoint.tensors["network.finished"][1] = False
    save_checkpoint(path, checkpoint)
    assert maskcl("export", tmp_path / "half", "--task", 1, "-o", tmp_path / "x.pt2") == 2
    assert "task 1 of " in capsys.readouterr().err
