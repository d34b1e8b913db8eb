"""MNIST and the sets that come in its format: four idx files, plain or .gz."""

from __future__ import annotations

import dataclasses
import gzip
import tempfile
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from maskcl.extras import install
from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.sources import TEST_SHARE, Images, joined, stratified_split

# Folders below --data by the set's name, as torchvision calls them.
FOLDERS = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "notmnist": "notMNIST",
}
# The letters A to J.
LETTERS = tuple("ABCDEFGHIJ")

_FIRST = {part: f"{part}-images-idx3-ubyte" for part in ("train", "t10k")}


def idx(name: str, data: Path) -> Images:
    """The images of a set in MNIST's format.

    Args:
        name: one of ``FOLDERS``.
        data: a folder with the idx files in it, in ``raw`` or in ``MNIST/raw`` (the set's own
            name in place of MNIST). It is only read.

    Raises:
        ScenarioError: a file is missing, damaged or not what its name says.
    """
    folder = _folder(name, data)
    parts = {part: _read_pair(folder, part) for part in ("train", "t10k")}
    shapes = {part: tuple(images.shape[1:]) for part, (images, _) in parts.items()}
    if shapes["train"] != shapes["t10k"]:
        raise ScenarioError(
            f"{folder}: training images are {shapes['train']}, test images {shapes['t10k']}"
        )
    train, test = ((images.unsqueeze(1), labels) for images, labels in parts.values())
    return joined(
        train, test, f"{FOLDERS[name]} idx files, the training and test files as they are"
    )


def notmnist(data: Path, seed: int) -> Images:
    """notMNIST's letters; where there is one pair of files, a fifth of each class is the test set.

    The folder is the first whose name begins with notMNIST. The split depends on ``seed`` alone.
    """
    folder = _folder("notmnist", data)
    found = [part for part in _FIRST if _is_there(folder, _FIRST[part])]
    if len(found) == 2:
        return dataclasses.replace(idx("notmnist", data), names=LETTERS)
    images, labels = _read_pair(folder, found[0])
    train, test = stratified_split(labels, TEST_SHARE, seed)
    words = "notMNIST idx files, a fifth of each class held out for test by the seed"
    return Images(images.unsqueeze(1), labels, train, test, 255.0, words, names=LETTERS)


def _folder(name: str, data: Path) -> Path:
    """The folder under ``data`` that holds the idx files."""
    own, wanted = FOLDERS[name], ["train"]
    places = [data / own / "raw", data / "raw", data]
    if name == "notmnist":
        wanted = ["train", "t10k"]
        places = [*(found / "raw" for found in sorted(data.glob(f"{own}*"))), *places]
    for folder in places:
        if any(_is_there(folder, _FIRST[part]) for part in wanted):
            return folder
    raise ScenarioError(
        f"no {own} file found: wanted {data / own / 'raw' / _FIRST['train']}.gz, looked in"
        f" {', '.join(map(str, places))}"
    )


def _is_there(folder: Path, name: str) -> bool:
    return (folder / name).is_file() or (folder / f"{name}.gz").is_file()


def _read_pair(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    images = _read_idx(folder, f"{part}-images-idx3-ubyte", dims=3)
    labels = _read_idx(folder, f"{part}-labels-idx1-ubyte", dims=1)
    if len(images) != len(labels):
        raise ScenarioError(f"{folder}: {part} has {len(images)} images but {len(labels)} labels")
    if len(labels) == 0:
        raise ScenarioError(f"{folder}: {part} has no images")
    if int(labels.max()) > 9:
        raise ScenarioError(f"{folder}: {part} has label {int(labels.max())}, wanted 0 to 9")
    return images, labels


def _read_idx(folder: Path, name: str, dims: int) -> Tensor:
    """One idx file through torchvision's reader, after a look at its header.

    torchvision trusts the header with asserts and bare view(); checking first gives a sentence
    that names the file.
    """
    path = folder / name
    if not path.is_file():
        path = folder / f"{name}.gz"
    if not path.is_file():
        raise ScenarioError(f"missing file: wanted {path}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ScenarioError(f"{path} cannot be read, it is cut off or damaged: {error}") from error
    _check_header(path, content, dims)
    return _parse(content, dims)


def _check_header(path: Path, content: bytes, dims: int) -> None:
    header = 4 * (1 + dims)
    if len(content) < header or content[:4] != bytes([0, 0, 8, dims]):
        raise ScenarioError(f"{path} is not an idx file of bytes with {dims} dimensions")
    sizes = np.frombuffer(content[4:header], dtype=">u4").astype(np.int64).tolist()
    wanted = header + int(np.prod(sizes))
    if len(content) != wanted:
        raise ScenarioError(
            f"{path} holds {len(content)} bytes where its header promises {wanted}: "
            "it is cut off or damaged"
        )


def _parse(content: bytes, dims: int) -> Tensor:
    try:
        from torchvision.datasets.mnist import read_image_file, read_label_file
    except ImportError as error:
        raise ScenarioError(f"idx files are read by torchvision: {install('vision')}") from error
    # The reader wants a path, and the data folder may be read-only or compressed.
    with tempfile.TemporaryDirectory(prefix="maskcl-idx-") as temporary:
        path = Path(temporary) / "idx"
        path.write_bytes(content)
        return read_image_file(str(path)) if dims == 3 else read_label_file(str(path))
