"""Image files in folders, one a class: any image folder, and Tiny ImageNet."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.published_files import datasets, reading
from maskcl.scenarios.sources import TEST_SHARE, Images, joined, stratified_split

# A set whose first image is larger is brought to this size, unless another is asked for.
LARGEST = 64
# Decoded images up to this many bytes are kept in memory; of more, each is decoded when wanted.
IN_MEMORY = 2 * 2**30

_TEST = ("test", "val", "validation")
# Beginnings of PIL's modes.
_GREY = ("1", "L", "I")

# Of a file: PIL's mode, (height, width).
Seen = tuple[str, tuple[int, int]]


class UnreadableImageError(ScenarioError, RuntimeError):
    """A file that cannot be decoded, found when a scenario is made or while a run goes on."""


@dataclass(frozen=True)
class FilePixels:
    """Images that are decoded when they are asked for: more than fit in memory.

    Attributes:
        files: one an image.
        mode: ``L``, grey, or ``RGB``.
        size: (height, width) that each is brought to.
        frame: black pixels added on every side.
    """

    files: Sequence[str]
    mode: str
    size: tuple[int, int]
    frame: int = 0

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W)."""
        height, width = (side + 2 * self.frame for side in self.size)
        return torch.Size([len(self.files), len(self.mode), height, width])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Images uint8[B, C, H, W] of int64[B] rows.

        Raises:
            UnreadableImageError: a file cannot be decoded; it is named.
        """
        try:
            found = [self.decode(self.files[row])[0] for row in rows.tolist()]
        except ScenarioError as error:
            raise UnreadableImageError(str(error)) from error
        return F.pad(torch.stack(found), (self.frame,) * 4)

    def framed(self, frame: int) -> FilePixels:
        """The same with more black pixels on every side."""
        return dataclasses.replace(self, frame=self.frame + frame)

    def decode(self, file: str) -> tuple[Tensor, Seen]:
        """uint8[C, height, width], scaled to cover the size and cut to it; and what it was."""
        from PIL import Image, ImageOps

        with _opened(file) as opened:
            image = _eight_bits(opened).convert(self.mode)
            if image.size != self.size[::-1]:
                image = ImageOps.fit(image, self.size[::-1], Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(image))
            seen = opened.mode, opened.size[::-1]
        return pixels.unsqueeze(0) if self.mode == "L" else pixels.permute(2, 0, 1), seen


def image_folder(data: Path, seed: int, size: int | None) -> Images:
    """Any folder of images: ``train/CLASS/*`` with ``test/CLASS/*`` (or ``val``), or ``CLASS/*``.

    Without a test folder a fifth of each class is held out by the seed. Images of another size
    are scaled to cover the wanted one, and cut to it about their middle. They are grey where all
    files are.

    Args:
        data: the folder; it is only read.
        seed: of what is held out.
        size: pixels of a side; None for the first image's height and width, or ``LARGEST`` where
            it is larger.

    Raises:
        ScenarioError: there are no classes, the two folders differ in theirs, or a file is no
            image.
    """
    train_folder = data / "train" if _has_folders(data / "train") else data
    train, names = _files(train_folder)
    if train_folder == data and {"train", *_TEST}.issuperset(names):
        raise ScenarioError(
            f"{data / names[0]} has no folders of classes: wanted {data / names[0] / 'CLASS'}"
        )
    tests = [data / name for name in _TEST if train_folder != data and _has_folders(data / name)]
    test: list[tuple[str, int]] = []
    if tests:
        test, found = _files(tests[0])
        if found != names:
            odd = sorted(set(found) ^ set(names))[0]
            has, lacks = (tests[0], train_folder) if odd in found else (train_folder, tests[0])
            raise ScenarioError(f"{has} has the class {odd!r}, which {lacks} lacks")
    pixels, words = _pixels([file for file, _ in train + test], size)
    labels = torch.tensor([label for _, label in train + test])
    if tests:
        rows = torch.arange(len(train)), torch.arange(len(train), len(labels))
        split = f"the folders {train_folder.name} and {tests[0].name}"
    else:
        rows = stratified_split(labels, TEST_SHARE, seed)
        split = "a fifth of each class held out for test by the seed"
    return Images(
        pixels, labels, *rows, 255.0, f"image files, {words}, {split}", names=tuple(names)
    )


def tiny_imagenet(data: Path) -> Images:
    """Tiny ImageNet: 200 classes of 500 + 50 colour images of 64x64 pixels; its val is the test.

    Args:
        data: the folder that ``tiny-imagenet-200`` lies in, or that folder; it is only read.

    Raises:
        ScenarioError: a file or folder is missing or damaged.
    """
    places = (data / "tiny-imagenet-200", data)
    root = next((place for place in places if _has_folders(place / "train")), None)
    if root is None:
        wanted = places[0] / "train"
        raise ScenarioError(f"missing folder: wanted {wanted}, looked in {places[0]}, {data}")
    train, names = _files(root / "train")
    test = _annotated(root / "val", names)
    parts = []
    for part in (train, test):
        files = FilePixels([file for file, _ in part], "RGB", (64, 64))  # a few are grey
        parts.append((_decoded(files)[0], torch.tensor([label for _, label in part])))
    words = "Tiny ImageNet, the training and validation images as they are"
    return dataclasses.replace(joined(parts[0], parts[1], words), names=tuple(names))


def _annotated(folder: Path, names: list[str]) -> list[tuple[str, int]]:
    """The validation images with their labels: from the list of them, or from class folders."""
    listed = folder / "val_annotations.txt"
    if not listed.is_file():
        if _has_folders(folder) and (found := _files(folder))[1] == names:
            return found[0]
        raise ScenarioError(f"missing file: wanted {listed}")
    label_of = {name: label for label, name in enumerate(names)}
    found_files = []
    with reading(listed):
        for line in listed.read_text().splitlines():
            file, name = line.split("\t")[:2]
            found_files.append((str(folder / "images" / file), label_of[name]))
    return found_files


def _files(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """Image files of a folder's class folders with their labels, and the classes' names."""
    folders = datasets("a folder of images")
    if not _has_folders(folder):
        raise ScenarioError(
            f"no folders of images found: wanted {folder / 'CLASS'} with image files in it"
        )
    try:
        found = folders.ImageFolder(str(folder))
    except (FileNotFoundError, PermissionError) as error:
        raise ScenarioError(f"{folder}: {' '.join(str(error).split())}") from error
    return found.samples, found.classes


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(path.is_dir() for path in folder.iterdir())


def _pixels(files: list[str], size: int | None) -> tuple[Any, str]:
    """The images of some files, in memory where they fit, and what they are in words."""
    with _opened(files[0]) as first:
        height, width = first.size[::-1]
    if size is not None:
        height = width = size
    elif max(height, width) > LARGEST:
        height = width = LARGEST
    found = FilePixels(files, "RGB", (height, width))
    fits = math.prod(found.shape) <= IN_MEMORY
    decoded, seen = _decoded(found) if fits else (None, _headers(files))
    is_grey = all(mode.startswith(_GREY) for mode, _ in seen)
    pixels: Tensor | FilePixels
    if decoded is None:
        pixels = dataclasses.replace(found, mode="L" if is_grey else "RGB")
    else:
        pixels = decoded[:, :1].clone() if is_grey else decoded  # grey in all three channels
    words = f"{'grey' if is_grey else 'colour'}, {height}x{width}"
    if {shape for _, shape in seen} != {(height, width)}:
        words += ", others scaled and cut to that"
    return pixels, words


def _headers(files: Sequence[str]) -> set[Seen]:
    """What the headers say of all files: what is no image is found before a run begins."""
    seen = set()
    for file in files:
        with _opened(file) as image:
            seen.add((image.mode, image.size[::-1]))
    return seen


def _decoded(files: FilePixels) -> tuple[Tensor, set[Seen]]:
    """All images, uint8[N, C, H, W], and what they were."""
    pixels, seen = torch.empty(files.shape, dtype=torch.uint8), set()
    for row, file in enumerate(files.files):
        pixels[row], found = files.decode(file)
        seen.add(found)
    return pixels, seen


@contextlib.contextmanager
def _opened(file: str) -> Iterator[Any]:
    from PIL import Image  # comes with torchvision

    with reading(Path(file)), Image.open(file) as image:
        yield image


def _eight_bits(image: Any) -> Any:
    """Grey images of 16 bits in 8; others as they are."""
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"its pixels are {image.mode}, wanted 8 or 16 bits")
    return Image.fromarray((values.astype(np.int64) >> 8).astype(np.uint8))
