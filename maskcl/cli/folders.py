"""Folders that a command makes, and the config.json that makes a folder a run."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskcl.checkpoint import CheckpointError, load_checkpoint, remove_unnamed
from maskcl.cli.options import CommandError
from maskcl.files import is_no_room
from maskcl.lock import LOCK, locked
from maskcl.reading import MissingError, ReadError, read_json
from maskcl.text import printable, sentence_of
from maskcl.training.trainer import CHECKPOINT
from maskcl.validation import ContentError, check

CONFIG = "config.json"
# Below a run's folder: one with more tasks while it trains, and one whose files become the run's.
ADDING, ADDED = "adding", "added"
# In the checkpoint's facts: what was removed, by task that was forgotten.
FORGOTTEN = "forgotten"

# What it is checked for here; the options are checked by their own table.
_CONFIG = {"scenario": str, "method?": str, "made_from?": {str: Any}}

# What config.json holds beside the options: the method, and what its network was made from.
_BESIDE = ("method", "made_from")


def check_new(directory: Path) -> None:
    """Whether a folder of that name can be made; writes nothing.

    Raises:
        CommandError: it exists, or there is no place for it.
    """
    if os.path.lexists(directory):
        hint = " (--resume goes on with it)" if (directory / CONFIG).is_file() else ""
        raise CommandError(f"{directory} exists already{hint}")
    with refusing():
        full = directory.absolute()
        above = next(path for path in full.parents if os.path.lexists(path))
        if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
            raise CommandError(f"{directory} cannot be made: {above} is not a folder to write in")
        longest = os.pathconf(above, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
        for name in full.relative_to(above).parts:
            if len(os.fsencode(name)) > longest:
                raise CommandError(f"{directory} cannot be made: its name is too long")


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Inside, nothing of a run is written yet: the system refuses what a person asked for.

    Raises:
        CommandError: a file or a place is wrong.
        OSError: the disk is full, or nobody reads what is said.
    """
    try:
        yield
    except OSError as error:
        if is_no_room(error) or isinstance(error, BrokenPipeError):
            raise
        raise CommandError(sentence_of(error)) from None


def check_out(path: Path) -> None:
    """Whether a new file of that name can be made; writes nothing.

    Raises:
        CommandError: it exists, or there is no place for it.
    """
    if os.path.lexists(path):
        raise CommandError(f"{path} exists already")
    above = path.absolute().parent
    if not above.is_dir():
        raise CommandError(f"{path} cannot be made: there is no such folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CommandError(f"{path} cannot be made: {above} is not a folder to write in")
    with refusing(), contextlib.suppress(FileNotFoundError):
        path.lstat()  # a name too long


def check_task(run: Path, task: int, num_tasks: int) -> None:
    """Raise CommandError unless the network of a run has the task."""
    if not 0 <= task < num_tasks:
        raise CommandError(f"the run in {run} has tasks 0 to {num_tasks - 1}, got {task}")


def config_of(method: str, options: dict[str, Any], made_from: dict[str, Any]) -> dict[str, Any]:
    """The content of a run's config.json."""
    return {"method": method, **options, "made_from": made_from}


def read_config_of(directory: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A run's method, its options, and what its network was made from.

    Raises:
        CommandError: the folder holds no run, or its config.json cannot be read.
    """
    path = directory / CONFIG
    try:
        saved = read_json(path)
        if not isinstance(saved, dict) or "scenario" not in saved or "format" in saved:
            raise CommandError(f"{path} is not a run's configuration")
        check(saved, _CONFIG, printable(path))
    except MissingError as error:
        raise CommandError(f"{directory} holds no run: {error}") from None
    except (ReadError, ContentError) as error:
        raise CommandError(str(error)) from None
    return parts_of(saved)


def parts_of(saved: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The parts that `config_of` put together."""
    options = {name: value for name, value in saved.items() if name not in _BESIDE}
    # Runs of before there was a choice are HAT's.
    return saved.get("method", "hat"), options, saved.get("made_from", {})


def read_saved(
    directory: Path, method: str, how: str = "--resume"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of the run in a folder and what its network was made from.

    Args:
        directory: of the run.
        method: that it has to be of.
        how: the flag that goes on with it, for errors.

    Raises:
        CommandError: there is no run, or one of another method.
    """
    if not (directory / CONFIG).is_file():
        raise CommandError(f"{directory} holds no run that {how} could go on with")
    found, options, made_from = read_config_of(directory)
    if found != method:
        raise CommandError(
            f"{directory} holds a run of {found}: `maskcl train {found} {how}` goes on with it"
        )
    return options, made_from


def folder_in_training(out: Path) -> Path:
    """Where the run of a folder goes on: below it while it gains tasks."""
    return out / ADDING if (out / ADDING / CONFIG).is_file() else out


def take_over(out: Path) -> None:
    """Put the files of a run that has gained its tasks in the place of what it had before.

    Until here the run is as it was. From the first step on a call goes on where another was killed.

    Raises:
        OSError: a file cannot be moved; the next call goes on.
    """
    if (out / ADDING).is_dir():
        (out / ADDING).rename(out / ADDED)
    finish_taking_over(out)


def finish_taking_over(out: Path) -> None:
    """Move what a killed `take_over` has left; nothing where there is none."""
    added = out / ADDED
    if not added.is_dir():
        return
    with locked(out):
        for path in sorted(added.rglob("*")):
            target = out / path.relative_to(added)
            if path.is_dir():
                target.mkdir(exist_ok=True)
            elif path.name != LOCK:
                path.replace(target)
        shutil.rmtree(added)
        with contextlib.suppress(CheckpointError):  # whoever reads it next says so
            remove_unnamed(out / CHECKPOINT)


def forgotten_in(run: Path) -> list[int]:
    """Tasks of a run that were forgotten, as its checkpoint says; [] where there is none."""
    try:
        found = load_checkpoint(run / CHECKPOINT).facts.get(FORGOTTEN, {})
        return sorted(int(task) for task in found)
    except (CheckpointError, ValueError, TypeError):
        return []
