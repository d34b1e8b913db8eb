"""CIFAR-10, CIFAR-100, SVHN and USPS from their published files, read by torchvision.

CIFAR's files are pickles, and a pickle can run any code. No file of theirs is unpickled before the
MD5 of every one is that of the published file, as torchvision's table has it: here first, so that
a missing or damaged one is named, and by torchvision's own check again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskcl.extras import install
from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.sources import Images, joined


def cifar(name: str, data: Path) -> Images:
    """60,000 colour images of 32x32 pixels in 10 or 100 classes (Krizhevsky 2009).

    Args:
        name: ``cifar10`` or ``cifar100``.
        data: the folder that ``cifar-10-batches-py`` or ``cifar-100-python`` lies in, or that
            folder itself; it is only read.

    Raises:
        ScenarioError: a file is missing, or is not the published one.
    """
    kind = getattr(datasets(name), name.upper())
    folder = str(kind.base_folder)
    places = [data, data / name.upper(), *([data.parent] if data.name == folder else [])]
    root = _first(places, f"{folder}/{kind.train_list[0][0]}")
    meta = (kind.meta["filename"], kind.meta["md5"])
    for file, checksum in (*kind.train_list, *kind.test_list, meta):
        _check(root / folder / file, checksum)
    with reading(root / folder):
        train, test = (
            kind(str(root), train=is_train, download=False) for is_train in (True, False)
        )
        parts = [
            (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), _labels(part.targets))
            for part in (train, test)
        ]
        names = tuple(map(str, train.classes))
        _check_parts(parts, len(names))
    words = f"{name.upper()}, the training and test files as they are"
    return dataclasses.replace(joined(parts[0], parts[1], words), names=names)


def svhn(data: Path) -> Images:
    """73,257 + 26,032 house numbers, colour images of 32x32 pixels (Netzer et al. 2011).

    Args:
        data: the folder with ``train_32x32.mat`` and ``test_32x32.mat``, or one with a folder
            ``svhn`` that has them; it is only read.

    Raises:
        ScenarioError: a file is missing, or is not the published one; scipy is missing.
    """
    kind = datasets("svhn").SVHN
    files = {split: kind.split_list[split][1:] for split in ("train", "test")}
    root = _first([data / "svhn", data / "SVHN", data], files["train"][0])
    for file, checksum in files.values():
        _check(root / file, checksum)
    with reading(root):
        sets = [kind(str(root), split=split, download=False) for split in files]
        parts = [
            (torch.from_numpy(np.ascontiguousarray(part.data)), _labels(part.labels))
            for part in sets
        ]
        _check_parts(parts, 10)
    return joined(parts[0], parts[1], "SVHN, the training and test files as they are")


def usps(data: Path) -> Images:
    """7,291 + 2,007 handwritten digits of 16x16 pixels (Hull 1994), as libsvm's files have them.

    Args:
        data: the folder with ``usps.bz2`` and ``usps.t.bz2``, or one with a folder ``USPS`` that
            has them; it is only read.

    Raises:
        ScenarioError: a file is missing or damaged.
    """
    kind = datasets("usps").USPS
    root = _first([data / "USPS", data / "usps", data], kind.split_list["train"][1])
    parts = []
    for split in ("train", "test"):
        path = root / kind.split_list[split][1]
        if not path.is_file():
            raise ScenarioError(f"missing file: wanted {path}")
        with reading(path):
            part = kind(str(root), train=split == "train", download=False)
            parts.append((torch.from_numpy(part.data).unsqueeze(1), _labels(part.targets)))
            _check_parts(parts, 10)
    return joined(parts[0], parts[1], "USPS, the training and test files as they are")


def datasets(name: str) -> Any:
    """torchvision's data sets.

    Raises:
        ScenarioError: torchvision is not installed; ``name`` says what needs it.
    """
    try:
        import torchvision.datasets as found
    except ImportError as error:
        raise ScenarioError(f"{name} needs torchvision: {install('vision')}") from error
    return found


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, whatever a reader stumbles over becomes a sentence that names the file or folder."""
    try:
        yield
    except (ScenarioError, MemoryError):
        raise
    except ImportError as error:
        raise ScenarioError(f"{path} is read with {error.name}: {install('train')}") from error
    except Exception as error:  # of the many kinds that readers of foreign files raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ScenarioError(f"{path} cannot be read, it is cut off or damaged: {reason}") from error


def _first(places: Sequence[Path], file: str) -> Path:
    """The first of some folders that has the file."""
    for place in places:
        if (place / file).is_file():
            return place
    raise ScenarioError(
        f"missing file: wanted {places[0] / file}, looked in {', '.join(map(str, places))}"
    )


def _check(path: Path, checksum: str) -> None:
    from torchvision.datasets.utils import check_integrity

    if not path.is_file():
        raise ScenarioError(f"missing file: wanted {path}")
    with reading(path):
        if not check_integrity(str(path), checksum):
            raise ScenarioError(
                f"{path} is damaged or not the published file: its MD5 is not {checksum}"
            )


def _labels(values: Any) -> Tensor:
    return torch.as_tensor(values).to(torch.int64)


def _check_parts(parts: list[tuple[Tensor, Tensor]], classes: int) -> None:
    """Raise ValueError where labels do not go with the images."""
    for images, labels in parts:
        if len(images) != len(labels) or len(labels) == 0:
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
        if int(labels.min()) < 0 or int(labels.max()) >= classes:
            wrong = labels[(labels < 0) | (labels >= classes)]
            raise ValueError(f"label {int(wrong[0])}, wanted 0 to {classes - 1}")
