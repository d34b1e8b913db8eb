"""Files and folders that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside ``path`` to write to; at the end what is there becomes ``path``, in one step.

    Both the file and the directory are flushed to the disk, so that at every moment ``path`` stands
    for a whole file, the old one or the new one.

    Raises:
        OSError: the disk is full, the directory absent, ...; the old file is intact then.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush(path.parent)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden folder beside ``path`` to fill, which becomes ``path`` in one step at the end.

    Folders above it are made. On an error what was written vanishes.

    Raises:
        OSError: ``path`` exists (and is not an empty folder), the disk is full, ...
    """
    path = Path(path)
    parent = path.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(parent)


def _umask() -> int:
    """The process's umask: mkdtemp makes folders that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Wait until file or directory is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open directories
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
