"""Files are whole or not there, nobody's file is touched, and a folder has one writer."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from maskcl.files import new_folder, remove_temporaries, replacing, write_atomic, write_json
from maskcl.lock import LOCK, LockedError, locked


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def umask(mask: int):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- the writer


def test_files_of_a_temporary_kind_of_name_are_left_alone(tmp_path):
    for name in ("a.tmp", ".a.tmp", "a"):
        (tmp_path / name).write_text("mine")
    os.symlink("a", tmp_path / "b.tmp")
    write_atomic(tmp_path / "b", b"new")
    assert (tmp_path / "b").read_bytes() == b"new"
    assert all((tmp_path / name).read_text() == "mine" for name in ("a.tmp", ".a.tmp", "a"))
    assert names(tmp_path) == [".a.tmp", "a", "a.tmp", "b", "b.tmp"]


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path):
    (tmp_path / "kept").write_text("precious")
    os.symlink("kept", tmp_path / "link")
    write_atomic(tmp_path / "link", b"new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    assert (tmp_path / "kept").read_text() == "precious"


def test_a_link_in_the_place_of_the_temporary_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "kept").write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 16)
    os.symlink("kept", tmp_path / f".maskcl-{'0' * 16}.tmp")
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "kept").read_text() == "precious"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path, mask):
    with umask(mask):
        write_atomic(tmp_path / "a", b"")
        with new_folder(tmp_path / "folder") as folder:
            write_json(folder / "b.json", {})
    assert mode(tmp_path / "a") == mode(tmp_path / "folder" / "b.json") == 0o666 & ~mask
    assert mode(tmp_path / "folder") == 0o777 & ~mask


def test_checkpoints_have_the_permissions_of_any_file(tmp_path):
    import torch

    from maskcl.checkpoint import Checkpoint, save_checkpoint

    with umask(0o022):
        save_checkpoint(tmp_path / "c", Checkpoint({}, {"task": 0}, {"a": torch.zeros(2)}))
    assert mode(tmp_path / "c") == 0o644


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    write_atomic(tmp_path / "a", b"new")
    assert mode(tmp_path / "a") == 0o640


@pytest.mark.parametrize(
    ("error", "said"),
    [(OSError(errno.ENOSPC, "No space left on device"), "x'"), (KeyboardInterrupt(), "")],
)
def test_an_error_leaves_the_old_file_and_no_temporary(tmp_path, error, said):
    (tmp_path / "x").write_text("old")

    def write_half():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert said in str(caught.value)  # the file that was asked for, not the temporary
    assert ".maskcl-" not in str(caught.value)
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("folder", errno.EISDIR),
        ("", errno.EISDIR),
        ("n" * 300, errno.ENAMETOOLONG),
        ("none/x", errno.ENOENT),
        ("file/x", errno.ENOTDIR),
    ],
)
def test_a_place_that_cannot_be_is_told_and_nothing_is_left(tmp_path, name, code):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Errno") as caught:
        write_atomic(tmp_path / name, b"new")
    assert caught.value.errno == code
    assert names(tmp_path) == ["file", "folder"]


def test_a_device_is_no_file_to_replace(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="no ordinary file"):
        write_atomic(tmp_path / "pipe", b"new")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_name_of_the_greatest_length_can_be_written(tmp_path):
    write_atomic(tmp_path / ("n" * 255), b"new")
    with new_folder(tmp_path / ("f" * 255)):
        pass
    assert len(names(tmp_path)) == 2


def test_what_killed_writers_left_is_known_by_its_name(tmp_path):
    pid = os.fork()
    if pid == 0:
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = names(tmp_path)
    assert left.startswith(".maskcl-")
    (tmp_path / "mine.tmp").write_text("")
    remove_temporaries(tmp_path)
    assert names(tmp_path) == ["mine.tmp"]


def test_two_processes_writing_one_checkpoint_never_mix(tmp_path):
    """Each saves its own; whoever reads finds one of the two, whole."""
    import torch

    from maskcl.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

    path = tmp_path / "c"

    def work(who: int) -> None:
        for _ in range(25):
            save_checkpoint(
                path, Checkpoint({}, {"task": who}, {"a": torch.full((9999,), float(who))})
            )
            found = load_checkpoint(path)
            if not bool((found.tensors["a"] == found.position["task"]).all()):
                os._exit(1)

    children = []
    for who in (1, 2):
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                work(who)
                os._exit(0)
            os._exit(2)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    assert names(tmp_path) == ["c"]


# --- the lock

HOLD = """
import sys, time
from maskcl.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(folder: Path):
    """Another process that holds the folder."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    with holder(tmp_path) as process:
        with pytest.raises(LockedError) as caught, locked(tmp_path):
            pass
        said = json.loads((tmp_path / LOCK).read_text())
        assert said["pid"] == process.pid
        sentence = f"process {process.pid} on {said['host']} since {said['since']}"
        assert str(caught.value) == f"{tmp_path} is in use by {sentence}"
        # Killed: the lock file stays, and holds nobody up.
        process.kill()
        process.wait()
        assert names(tmp_path) == [LOCK]
        (tmp_path / ".maskcl-0123.tmp").write_text("left by the killed one")
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        assert names(tmp_path) == []


def test_the_same_thread_may_ask_again_others_may_not(tmp_path):
    said = []

    def other() -> None:
        with pytest.raises(LockedError) as caught, locked(tmp_path):
            pass
        said.append(str(caught.value))

    with locked(tmp_path), locked(tmp_path / "."):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        pid = os.fork()
        if pid == 0:
            try:
                other()
            finally:
                os._exit(0 if f"process {os.getppid()} on" in said[-1] else 1)
        assert os.waitpid(pid, 0)[1] == 0
        (tmp_path / LOCK).read_text()  # reading does not free it
        pid = os.fork()
        if pid == 0:
            try:
                other()
            finally:
                os._exit(0 if "since" in said[-1] else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert said == [f"{tmp_path} is in use by another thread of this process"]
    assert names(tmp_path) == []


def test_a_fork_that_outlives_the_holder_does_not_keep_the_lock(tmp_path):
    """As workers of a DataLoader may for seconds."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with locked(tmp_path):
            worker = os.fork()
            if worker == 0:
                os.read(read, 1)
                os._exit(0)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    with locked(tmp_path):
        pass
    os.write(write, b"x")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_frees_the_folder(tmp_path, error):
    with pytest.raises(error), locked(tmp_path / "a" / "b"):
        raise error
    assert names(tmp_path) == []  # made for the lock alone
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").write_text("")
    assert names(tmp_path / "a" / "b") == ["x"]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 4000])
def test_a_lock_that_says_nothing_is_a_lock_too(tmp_path, content):
    with holder(tmp_path):
        (tmp_path / LOCK).write_bytes(content)
        with pytest.raises(LockedError, match="is in use by another process"), locked(tmp_path):
            pass


def test_nothing_is_locked_where_there_is_no_folder():
    with locked(None):
        pass


def test_a_copy_of_a_folder_in_use_is_free(tmp_path):
    import shutil

    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        with locked(tmp_path / "copy"):
            pass
        assert names(tmp_path / "copy") == []
