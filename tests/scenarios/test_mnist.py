"""MNIST scenarios: idx files made here, and the real ones where MASKCL_DATA names them."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from maskcl import scenarios
from maskcl.scenarios import ScenarioError

pytest.importorskip("torchvision", reason="the MNIST scenarios read idx files with torchvision")

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.tobytes()
    )


@pytest.fixture
def content() -> dict[str, bytes]:
    """40 training and 20 test images of 4x4 pixels, image n full of n."""
    made = {}
    for part, count in (("train", 40), ("t10k", 20)):
        images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
        made[f"{part}-images-idx3-ubyte"] = idx(images)
        made[f"{part}-labels-idx1-ubyte"] = idx((np.arange(count) % 10).astype(np.uint8))
    return made


def write(folder: Path, content: dict[str, bytes], compress: bool) -> None:
    folder.mkdir(parents=True)
    for name, data in content.items():
        path = folder / (f"{name}.gz" if compress else name)
        path.write_bytes(gzip.compress(data) if compress else data)


@pytest.mark.parametrize("where", ["MNIST/raw", "raw", "."])
@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_found_read_and_left_alone(tmp_path, content, where, compress):
    write(tmp_path / "data" / where, content, compress)
    before = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    scenario = scenarios.load("split-mnist", data=tmp_path / "data")
    x, y = scenario.train_set(1).take(torch.arange(8))
    assert scenario.sizes == [(8, 4)] * 5
    assert scenario.input_shape == (1, 4, 4)
    # Task 1 is classes 2 and 3: images 2, 3, 12, 13 ...
    assert (x[:, 0, 0, 0] * 255).round().tolist() == [2, 3, 12, 13, 22, 23, 32, 33]
    assert y.tolist() == [0, 1] * 4
    assert scenario.score(1, torch.tensor([0, 1, 0, 1])) == 1.0
    after = {path: path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert after == before


def test_images_are_framed_and_normalised_only_where_asked(tmp_path, content):
    write(tmp_path / "data", content, compress=False)
    plain = scenarios.load("split-mnist", data=tmp_path / "data")
    made = scenarios.load("split-mnist", data=tmp_path / "data", padding=2, normalise=(0.1, 0.25))
    assert made.input_shape == (1, 8, 8)
    rows = torch.arange(8)
    (x, y), (small, same) = made.train_set(1).take(rows), plain.train_set(1).take(rows)
    assert torch.equal(y, same)
    assert torch.equal(x[..., 2:6, 2:6], (small - 0.1) / 0.25)
    frame = torch.ones(8, 8, dtype=torch.bool)
    frame[2:6, 2:6] = False
    assert torch.equal(x[:, 0, frame], torch.full((8, 48), -0.1) / 0.25)
    # Test images are prepared alike, and the source says so.
    assert made.test_inputs(1).take(rows[:1]).min() == x.min()
    assert "framed to 8x8, mean 0.1 and standard deviation 0.25 taken out" in made.source
    assert "framed" not in plain.source
    for wrong in ({"padding": -1}, {"normalise": (0.1, 0.0)}):
        with pytest.raises(ScenarioError, match=next(iter(wrong))):
            scenarios.load("split-mnist", data=tmp_path / "data", **wrong)


def test_truncated_and_wrong_files_are_named(tmp_path, content):
    write(tmp_path / "data", content, compress=False)
    path = tmp_path / "data" / FILES[0]

    def refusal() -> str:
        with pytest.raises(ScenarioError) as caught:
            scenarios.load("split-mnist", data=tmp_path / "data")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    path.write_bytes(content[FILES[0]][:-5])
    assert f"{path} holds" in refusal()
    assert "cut off or damaged" in refusal()
    path.write_bytes(content[FILES[0]][:9])
    assert "is not an idx file of bytes with 3 dimensions" in refusal()
    path.write_bytes(content[FILES[1]])
    assert "is not an idx file of bytes with 3 dimensions" in refusal()
    path.write_bytes(idx(np.zeros((7, 4, 4), np.uint8)))
    assert "train has 7 images but 40 labels" in refusal()
    path.write_bytes(content[FILES[0]])
    (tmp_path / "data" / FILES[3]).unlink()
    assert refusal() == f"missing file: wanted {tmp_path / 'data' / FILES[3]}.gz"
    (tmp_path / "data" / FILES[3]).write_bytes(idx(np.full(20, 11, np.uint8)))
    assert "t10k has label 11, wanted 0 to 9" in refusal()


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"no gzip", lambda b: b""]
)
def test_damaged_gzip_is_named(tmp_path, content, damage):
    write(tmp_path / "data", content, compress=True)
    path = tmp_path / "data" / f"{FILES[2]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ScenarioError, match=f"{path}"):
        scenarios.load("split-mnist", data=tmp_path / "data")


def test_a_folder_without_the_files_names_the_first_one_wanted(tmp_path):
    with pytest.raises(ScenarioError, match=r"wanted .*MNIST/raw/train-images-idx3-ubyte\.gz"):
        scenarios.load("permuted-mnist", data=tmp_path)


@pytest.mark.skipif("MASKCL_DATA" not in os.environ, reason="MASKCL_DATA names no data folder")
def test_real_mnist():
    data = os.environ["MASKCL_DATA"]
    two = scenarios.load("split-mnist", data=data, tasks=2)
    assert two.classes == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert two.sizes == [(30596, 5139), (29404, 4861)]
    assert two.input_shape == (1, 28, 28)
    ten = scenarios.load("permuted-mnist", data=data)
    assert ten.sizes == [(60000, 10000)] * 10
    assert ten.setting.name == "domain"
    first, moved = (ten.train_set(task).take(torch.arange(3))[0] for task in (0, 9))
    assert torch.equal(first.flatten(1).sort(dim=1)[0], moved.flatten(1).sort(dim=1)[0])
    assert not torch.equal(first, moved)
