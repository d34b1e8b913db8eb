"""Where images come from: scikit-learn's digits, or MNIST's idx files in a folder."""

from __future__ import annotations

import dataclasses
import gzip
import math
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.scenarios.base import ScenarioError

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Images:
    """All images of a source, already split.

    Attributes:
        pixels: [N, 1, H, W], as read.
        labels: int64[N].
        train: int64 rows of the training set.
        test: int64 rows of the test set.
        full_scale: pixel value that becomes 1.0.
        source: in words, for the report.
        mean: taken from every pixel after scaling.
        std: what the rest is divided by.
    """

    pixels: Tensor
    labels: Tensor
    train: Tensor
    test: Tensor
    full_scale: float
    source: str
    mean: float = 0.0
    std: float = 1.0


def digits(seed: int) -> Images:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels; a fifth of each class is the test set.

    The split depends on ``seed`` alone: the digits come as one set, without a split of their own.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ScenarioError(
            "the digits scenarios need scikit-learn: pip install 'maskcl[train]'"
        ) from error
    bunch = load_digits()
    labels = torch.from_numpy(np.asarray(bunch.target)).to(torch.int64)
    train, test = stratified_split(labels, TEST_SHARE, seed)
    return Images(
        pixels=torch.from_numpy(np.asarray(bunch.images)).to(torch.float32).unsqueeze(1),
        labels=labels,
        train=train,
        test=test,
        full_scale=16.0,
        source="scikit-learn digits, 8x8, a fifth of each class held out for test by the seed",
    )


def prepared(
    images: Images, padding: int = 0, normalise: tuple[float, float] | None = None
) -> Images:
    """The same images with a black frame, and with a mean and a standard deviation to take out.

    Args:
        images: kept as they are.
        padding: pixels of value 0 added on every side.
        normalise: (mean, std) of pixels between 0 and 1: (x - mean) / std of the framed image.

    Raises:
        ScenarioError: a negative padding, or no positive std.
    """
    if padding < 0:
        raise ScenarioError(f"padding must be at least 0, got {padding}")
    mean, std = (0.0, 1.0) if normalise is None else normalise
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ScenarioError(f"normalise wants a mean and a positive std, got {mean} and {std}")
    source, pixels = images.source, images.pixels
    if padding:
        pixels = F.pad(pixels, (padding,) * 4)
        source += f", framed to {pixels.shape[2]}x{pixels.shape[3]}"
    if normalise is not None:
        source += f", mean {mean:g} and standard deviation {std:g} taken out"
    return dataclasses.replace(images, pixels=pixels, source=source, mean=mean, std=std)


def stratified_split(labels: Tensor, test_share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows (train, test), both sorted, with round(test_share n) rows of every class in test.

    numpy's RandomState is used because its stream is frozen: the split is the same under every
    numpy release.
    """
    test = []
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels == label).flatten().numpy()
        order = np.random.RandomState([seed, label]).permutation(len(rows))
        test.append(rows[order[: round(test_share * len(rows))]])
    chosen = torch.from_numpy(np.sort(np.concatenate(test)))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    held_out[chosen] = True
    return torch.nonzero(~held_out).flatten(), chosen


def mnist(data: Path | None) -> Images:
    """MNIST's 60,000 + 10,000 digits of 28x28 pixels, or any four files in its format.

    Args:
        data: a folder with the idx files, plain or .gz, in it, in ``raw`` or in ``MNIST/raw``.
            It is only read.

    Raises:
        ScenarioError: a file is missing, damaged or not what its name says.
    """
    if data is None:
        raise ScenarioError(
            "the MNIST scenarios read idx files: say where they are with --data DIR"
        )
    folder = _folder(Path(data))
    parts = {name: _read_pair(folder, name) for name in ("train", "t10k")}
    shapes = {name: tuple(images.shape[1:]) for name, (images, _) in parts.items()}
    if shapes["train"] != shapes["t10k"]:
        raise ScenarioError(
            f"{folder}: training images are {shapes['train']}, test images {shapes['t10k']}"
        )
    count = len(parts["train"][1])
    return Images(
        pixels=torch.cat([parts["train"][0], parts["t10k"][0]]).unsqueeze(1),
        labels=torch.cat([parts["train"][1], parts["t10k"][1]]),
        train=torch.arange(count),
        test=torch.arange(count, count + len(parts["t10k"][1])),
        full_scale=255.0,
        source="MNIST idx files, the training and test files as they are",
    )


def _folder(data: Path) -> Path:
    """The folder under ``data`` that holds the idx files."""
    if not data.is_dir():
        raise ScenarioError(f"--data {data} is not a folder")
    first = "train-images-idx3-ubyte"
    for folder in (data / "MNIST" / "raw", data / "raw", data):
        if (folder / first).is_file() or (folder / f"{first}.gz").is_file():
            return folder
    raise ScenarioError(f"no MNIST file found: wanted {data / 'MNIST' / 'raw' / first}.gz")


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
        raise ScenarioError(
            "the MNIST scenarios need torchvision: pip install 'maskcl[vision]'"
        ) from error
    # The reader wants a path, and the data folder may be read-only or compressed.
    with tempfile.TemporaryDirectory(prefix="maskcl-idx-") as temporary:
        path = Path(temporary) / "idx"
        path.write_bytes(content)
        return read_image_file(str(path)) if dims == 3 else read_label_file(str(path))
