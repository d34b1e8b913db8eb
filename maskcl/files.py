"""Files that are there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
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


def _flush(path: Path) -> None:
    """Wait until file or directory is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open directories
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
