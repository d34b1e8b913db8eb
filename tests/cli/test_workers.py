"""``--workers N`` on images that are decoded as they are needed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from maskcl import cli
from maskcl.scenarios import image_folders
from tests.scenarios import files

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("torchvision", reason="image folders are read with torchvision")
from PIL import Image


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of four classes, whose images do not fit in memory."""
    monkeypatch.setattr(image_folders, "IN_MEMORY", 0)
    for shade, name in enumerate("abcd"):
        for n in range(6):
            folder = tmp_path / "images" / ("test" if n > 3 else "train") / name
            files.write_image(folder / f"{n}.png", 60 * shade + n, (6, 6))
    return tmp_path / "images"


def train(images, out, *more):
    small = ["--tasks", 2, "--model", "mlp", "--hidden", "8", "--epochs", 2, "--batch-size", 4]
    words = ["--scenario", "images", "--data", images, *small, "--out", out, *more]
    return cli.main(["train", "hat", *map(str, words)])


def test_a_run_may_go_on_with_other_workers(images, tmp_path):
    assert train(images, tmp_path / "out", "--workers", 1) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["configuration"]["workers"] == 1
    assert cli.main(["train", "hat", "--out", f"{tmp_path}/out", "--resume", "--workers", "0"]) == 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_decoded_is_one_sentence(images, tmp_path, capsys, workers):
    path = images / "test" / "d" / "5.png"
    noise = np.random.RandomState(0).randint(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:150])  # its header is whole
    assert train(images, tmp_path / "out", "--workers", workers) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"maskcl: the run failed: {path} cannot be read")
    assert said.count("\n") == 1


def test_less_than_no_workers_are_refused(images, tmp_path, capsys):
    assert train(images, tmp_path / "out", "--workers", -1) == 2
    assert capsys.readouterr().err == "maskcl: workers must be at least 0, got -1\n"
    assert not (tmp_path / "out").exists()
