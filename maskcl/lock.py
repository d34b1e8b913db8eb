"""One process at a time writes into a run's folder."""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskcl.files import remove_temporaries
from maskcl.text import printable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_MOST_BYTES = 4096
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)

# Thread and open file that hold a folder in this process, by the folder's device and inode.
_held: dict[tuple[int, int], tuple[int, int]] = {}
_guard = threading.Lock()


class LockedError(RuntimeError):
    """Another process or thread writes into the folder; the sentence says which, and since when."""


@contextlib.contextmanager
def locked(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Inside, no other process or thread that asks for it writes into the folder.

    The thread that holds it may ask again. The folder is made where it is absent, and vanishes at
    the end if nothing was written. ``.lock`` in it says who holds it, for other processes; what
    counts is the system's own lock on that file (`fcntl.flock`), which ends with the process,
    however it ends. Between computers that share a file system it holds where that passes such
    locks on, as NFS does from Linux 2.6.12 on. On Windows, and on file systems that know no locks,
    nothing is locked.

    Args:
        folder: of a run; None: nothing is locked.

    Raises:
        LockedError: it is held.
        OSError: the folder cannot be made, or nothing be written in it.
    """
    if folder is None:
        yield
        return
    path = Path(folder)
    made = _make(path)
    found = path.stat()
    place, me, process = (found.st_dev, found.st_ino), threading.get_ident(), os.getpid()
    with _guard:
        thread, _ = _held.get(place, (None, None))
        if thread is None:
            _held[place] = me, _take(path)
        elif thread != me:
            raise LockedError(f"{printable(path)} is in use by another thread of this process")
    try:
        if thread is None:
            remove_temporaries(path)
        yield
    finally:
        if thread is None and os.getpid() == process:  # a fork may come by here
            with _guard:
                _release(path, _held.pop(place)[1])
            with contextlib.suppress(OSError):  # something is in it
                for one in made:
                    one.rmdir()


@functools.cache
def _forget_in_forks() -> None:
    """A forked process has the file open too, which would keep the lock beyond this one's end."""

    def forget() -> None:
        global _guard
        _guard = threading.Lock()
        for _, descriptor in _held.values():
            os.close(descriptor)
        _held.clear()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


def _make(path: Path) -> list[Path]:
    """The folders that were made here, the innermost first."""
    missing = [one for one in (path, *path.absolute().parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _take(path: Path) -> int:
    """The lock file's descriptor, locked, with who holds it as content.

    Raises:
        LockedError: another process has it.
    """
    _forget_in_forks()
    file = path / LOCK
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _flock(descriptor)
            if _is_still_there(file, descriptor):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(_me()).encode())
                return descriptor
        except BlockingIOError:
            said = _said_by(os.pread(descriptor, _MOST_BYTES, 0))
            os.close(descriptor)
            raise LockedError(f"{printable(path)} is in use by {said}") from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder removed it between the opening and the lock


def _flock(descriptor: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _is_still_there(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _release(path: Path, descriptor: int) -> None:
    # Removed while it is held: whoever waits for it sees that it is another file.
    with contextlib.suppress(OSError):
        if _is_still_there(path / LOCK, descriptor):
            (path / LOCK).unlink()
    os.close(descriptor)


def _me() -> dict[str, Any]:
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _said_by(content: bytes) -> str:
    """Who holds a lock, by what its file says."""
    try:
        said = json.loads(content)
        return printable(f"process {said['pid']} on {said['host']} since {said['since']}")
    except (ValueError, KeyError, TypeError, RecursionError):
        return "another process"
