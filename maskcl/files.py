"""Files and folders that are there as a whole or not at all: all that maskcl writes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What the disk cannot take: nobody asked for something wrong.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file beside ``path`` to write to, which becomes ``path`` in one step at the end.

    Its name is unique and hidden, ``.maskcl-*.tmp``, and it is made anew: no other process has it
    and no link is followed. File and directory are flushed to the disk, so that at every moment
    ``path`` stands for a whole file, the old one or the new one. A new file has the permissions
    that the umask leaves, one that is replaced keeps its own. A link is replaced itself; what it
    points to stays.

    Raises:
        OSError: the disk is full, the directory absent, ``path`` a folder or a device, ...; what
            was there is intact then, and the error names ``path``.
    """
    path = Path(path)
    mode = _mode_of(path)
    temporary = _unique_beside(path)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
        if mode is not None:
            temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        ours = isinstance(error, OSError) and error.filename in (None, str(temporary))
        if ours and (code := getattr(error, "errno", None)) is not None:
            raise OSError(code, os.strerror(code), str(path)) from error
        raise
    _flush(path.parent)


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a whole file or nothing, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON as a whole file or not at all.

    Raises:
        OSError: as `replacing`.
        ValueError: there is a NaN or an infinity in it, which JSON does not know.
    """
    write_atomic(path, (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden folder beside ``path`` to fill, which becomes ``path`` in one step at the end.

    Folders above it are made. On an error what was written vanishes.

    Raises:
        OSError: ``path`` exists (and is not an empty folder), the disk is full, ...
    """
    path = Path(path).absolute()
    with contextlib.suppress(FileNotFoundError):
        path.lstat()  # a name that cannot be
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unique_beside(path)
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _flush(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder; only who knows that nobody else writes there."""
    for path in folder.glob(".maskcl-*.tmp"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def is_no_room(error: OSError) -> bool:
    """Whether the disk is full or failing, rather than the name or place wrong."""
    return error.errno in _NO_ROOM


def _unique_beside(path: Path) -> Path:
    return path.parent / f".maskcl-{secrets.token_hex(8)}.tmp"


def _mode_of(path: Path) -> int | None:
    """Permissions of the file that is replaced; None where there is none, or a link."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISLNK(mode):
        return None
    if not stat.S_ISREG(mode):
        raise FileExistsError(errno.EEXIST, "is no ordinary file", str(path))
    return stat.S_IMODE(mode)


def _flush(path: Path) -> None:
    """Wait until file or directory is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows does not open directories
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
