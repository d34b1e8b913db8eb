"""``maskcl watch``: a page of a run that goes on, made anew whenever its checkpoint changes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from maskcl import report
from maskcl.checkpoint import CheckpointError, load_facts
from maskcl.cli.folders import CONFIG, folder_in_training, read_config_of
from maskcl.cli.options import CommandError
from maskcl.report.files import RESULT
from maskcl.text import printable
from maskcl.training.content import run_content
from maskcl.training.result import Result
from maskcl.training.trainer import CHECKPOINT

WATCHED = "watch.html"
RELOAD = 5
# Without a new epoch for this long, and for so many times the longest one, a run is said to be
# still: killed, or slow.
STILL, TIMES = 60.0, 5.0
# A day; what sleeps takes no infinity.
_MOST_SECONDS = 86400.0


def watch(run: Path, every: float = 2.0) -> None:
    """Write DIR/watch.html after every epoch, and a line to the terminal, until the run is over.

    The run is only read: its files are neither locked nor changed.

    Args:
        run: folder of a run of ``maskcl train``, or of a Trainer with a directory.
        every: seconds between looks.

    Raises:
        CommandError: there is no run in the folder, or the page cannot be written.
    """
    if not every <= _MOST_SECONDS:
        raise CommandError(f"every must be at most {_MOST_SECONDS:g} seconds, got {every}")
    _check(run)
    _say(f"page: {run / WATCHED}")
    try:
        _follow(run, every)
    except KeyboardInterrupt:
        print("no longer watched; the run goes on")


def _check(run: Path) -> None:
    if not run.is_dir():
        raise CommandError(f"{run} is not a run's folder")
    folder = folder_in_training(run)
    if not any((folder / name).is_file() for name in (CONFIG, CHECKPOINT, RESULT)):
        raise CommandError(f"{run} holds no run: wanted {CONFIG} or {CHECKPOINT} in it")
    if not any((folder / name).is_file() for name in (CHECKPOINT, RESULT)):
        read_config_of(folder)  # a run that has just begun, or a pretrained base


def _follow(run: Path, every: float) -> None:
    seen, changed, longest, is_still = 0, time.monotonic(), 0.0, False
    begun = False
    while True:
        folder = folder_in_training(run)
        if folder == run and (run / RESULT).is_file():
            _say(f"finished: {_finish(run)}")
            return
        stamp = _stamp(folder / CHECKPOINT)
        now = time.monotonic()
        if stamp != seen:
            said, is_over = _draw(run, folder)
            longest, seen = max(longest, now - changed if begun else 0.0), stamp
            changed, begun, is_still = now, True, False
            _say(said)
            if is_over:
                _say(f"finished: {run / WATCHED}")
                return
        elif not is_still and now - changed > max(STILL, TIMES * longest):
            is_still = True
            _draw(
                run, folder, f"nothing new for {now - changed:.0f} s: the run is slow or has died"
            )
            _say(
                f"nothing new for {now - changed:.0f} s: the run is slow, or has died; a run that"
                " has died goes on with --resume"
            )
        time.sleep(every)


def _say(line: str) -> None:
    print(printable(line), flush=True)


def _stamp(path: Path) -> int:
    """Changes when the file does; 0 where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _draw(run: Path, folder: Path, note: str = "") -> tuple[str, bool]:
    """Make the page of what the checkpoint says; where the run stands, and whether it is over.

    A run of the command line is over when it has its result.json, a Trainer's after its last task.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return "no epoch is finished yet", False
    try:
        config, position, facts = load_facts(path)
        content = run_content(config, Result.from_dict(facts["result"]))
    except CheckpointError as error:
        raise CommandError(str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CommandError(f"{path} is not of a run that can be watched: {error!r}") from None
    content["configuration"] = {**content["configuration"], **_asked_for(folder)}
    stands = _standing(config, position, content)
    is_trained = position["task"] == config["scenario"]["num_tasks"]
    is_over = is_trained and not (folder / CONFIG).is_file()
    note = note or ("Trained" if is_trained else "In training")
    _write(run, content, f"{note}; {stands}.", 0 if is_over else RELOAD)
    return stands, is_over


def _asked_for(folder: Path) -> dict[str, Any]:
    """The options of the command line, where the run is one of its."""
    try:
        return read_config_of(folder)[1]
    except CommandError:
        return {}


def _standing(config: dict[str, Any], position: dict[str, int], content: dict[str, Any]) -> str:
    task, epoch = position["task"], position["epoch"]
    tasks, epochs = int(config["scenario"]["num_tasks"]), config["epochs"]
    if epoch == 0:
        task, epoch = max(task - 1, 0), len(content["losses"][max(task - 1, 0)])
    said = f"task {task} ({task + 1} of {tasks}), epoch {epoch}/{epochs}"
    losses, scores = content["losses"][task], content["training_accuracies"][task]
    if losses:
        said += f", loss {losses[-1]:.4f}"
    if scores:
        said += f", accuracy {scores[-1]:.4f}"
    return said


def _finish(run: Path) -> Path:
    """Let the page say that the run is finished; returns the finished run's."""
    content = report.read_result(run)
    _write(run, content, "Finished: report.html beside this page is the same.", 0)
    return run / "report.html"


def _write(run: Path, content: dict[str, Any], note: str, reload: int) -> None:
    from maskcl.report import write_page

    try:
        # A run that has diverged is not JSON, but may be looked at.
        write_page(json.loads(json.dumps(content)), run / WATCHED, note=note, reload=reload)
    except ImportError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(
            f"{run / WATCHED} cannot be written: {error.strerror or error}"
        ) from None
