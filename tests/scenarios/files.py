"""Small data sets in the true formats, for tests that read them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np

NAMES = ("train", "t10k")


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes."""
    return (
        bytes([0, 0, 8, array.ndim])
        + struct.pack(f">{array.ndim}I", *array.shape)
        + array.astype(np.uint8).tobytes()
    )


def numbered(count: int, *shape: int) -> np.ndarray:
    """Images uint8 [count, *shape], image n full of n."""
    rows = np.arange(count, dtype=np.uint8).reshape(-1, *[1] * len(shape))
    return np.broadcast_to(rows, (count, *shape)).copy()


def write_idx(folder: Path, parts: tuple[str, ...] = NAMES, *, count: int = 40) -> None:
    """MNIST's files: image n full of n, of class n % 10; half as many for the test."""
    folder.mkdir(parents=True)
    for part in parts:
        rows = count if part == "train" else count // 2
        for name, array in (
            (f"{part}-images-idx3-ubyte", numbered(rows, 4, 4)),
            (f"{part}-labels-idx1-ubyte", np.arange(rows) % 10),
        ):
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))


def write_usps(folder: Path) -> None:
    """libsvm's lines: image n has the value -1 + n / 100 everywhere, its label is n % 10 + 1."""
    folder.mkdir(parents=True)
    for name, count in (("usps.bz2", 40), ("usps.t.bz2", 20)):
        lines = [
            " ".join([str(n % 10 + 1), *(f"{i}:{-1 + n / 100:g}" for i in range(1, 257))])
            for n in range(count)
        ]
        (folder / name).write_bytes(bz2.compress(("\n".join(lines) + "\n").encode()))


def write_cifar(folder: Path, kind: type, classes: int) -> dict[str, object]:
    """CIFAR's pickles, red n, green 100, blue 200; the tables of their checksums for ``kind``."""
    key = "labels" if classes == 10 else "fine_labels"
    base = folder / str(kind.base_folder)
    base.mkdir(parents=True)
    tables: dict[str, object] = {}
    for table, count in (("train_list", 2 * classes), ("test_list", classes)):
        rows = []
        for name, _ in getattr(kind, table):
            data = np.empty((count, 3, 1024), np.uint8)
            data[:, 0], data[:, 1:] = numbered(count, 1024), np.array([[100], [200]])
            labels = [n % classes for n in range(count)]
            rows.append(
                [name, _pickled(base / name, {"data": data.reshape(count, -1), key: labels})]
            )
        tables[table] = rows
    meta = kind.meta
    names = {meta["key"]: [f"class-{label}" for label in range(classes)]}
    tables["meta"] = {**meta, "md5": _pickled(base / meta["filename"], names)}
    return tables


def write_svhn(folder: Path, kind: type) -> dict[str, list[str]]:
    """SVHN's .mat files, image n full of n, digit n % 10, where 0 is 10; the checksums' table."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    found = {}
    for split, count in (("train", 40), ("test", 20)):
        url, name, _ = kind.split_list[split]
        labels = np.array([[n % 10 or 10] for n in range(count)], np.uint8)
        content = {"X": numbered(count, 32, 32, 3).transpose(1, 2, 3, 0), "y": labels}
        savemat(folder / name, content)
        found[split] = [url, name, md5(folder / name)]
    return found


def write_image(path: Path, colour: int | tuple[int, int, int], size: tuple[int, int]) -> None:
    """An image of one colour, grey where that is a number; ``size`` is (height, width)."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size[::-1], colour).save(path)


def md5(path: Path) -> str:
    """As torchvision's tables have it."""
    return hashlib.md5(path.read_bytes()).hexdigest()


def _pickled(path: Path, content: object) -> str:
    path.write_bytes(pickle.dumps(content))
    return md5(path)
