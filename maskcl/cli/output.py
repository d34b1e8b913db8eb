"""What the command line says, and what happens when nobody listens any more."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from maskcl.cli.folders import CONFIG
from maskcl.cli.processes import is_first, number
from maskcl.scenarios import ItemError
from maskcl.text import printable, sentence_of
from maskcl.training.processes import LOST

CLOSED = 141
"""Exit code where nobody reads what is said: what shells count for SIGPIPE."""


class Output(Console):
    """Standard output: names in brackets are no markup, and a closed pipe is an error."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Pass it on, so that a run ends as on Ctrl-C and says how to go on."""
        raise


def write_out_what_is_unknown() -> None:
    r"""Characters that the terminal's encoding lacks, as ± in ASCII, become ``\xb1``, no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show(text: str) -> None:
    """Print lines, nothing in which acts on the terminal."""
    print("\n".join(printable(line) for line in text.split("\n")))


def say(sentence: Any) -> None:
    """Print ``maskcl: ...`` as one line on stderr, if anybody reads that.

    Of several processes, which say the same, the first one alone does.
    """
    if sys.stderr is not None and is_first():
        with contextlib.suppress(OSError, ValueError):
            print(f"maskcl: {printable(' '.join(str(sentence).split()))}", file=sys.stderr)
            sys.stderr.flush()


def finish(code: int) -> int:
    """The exit code, once all that was said has gone out; so that nothing fails after this."""
    if code == CLOSED:
        _silence(sys.stdout)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        code = CLOSED
        _silence(sys.stdout)
    except (OSError, ValueError) as error:  # a full disk; a stream that a caller closed
        say(f"standard output: {sentence_of(error)}")
        code = code or 1
        _silence(sys.stdout)
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)
    return code


def _silence(stream: Any) -> None:
    """Send the rest nowhere: the interpreter flushes at its end too, and complains."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        place = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, place)
        os.close(nowhere)


def failed(error: Exception, *whose: str) -> int:
    """Diverged, a bad sample, a full disk or memory: a sentence. The rest: a traceback."""
    text = str(error)
    if isinstance(error, MemoryError) or "allocate memory" in text or "out of memory" in text:
        say(f"the run failed: there is not enough memory ({sentence_of(error)[:200]})")
        return 1
    is_told = isinstance(error, ItemError) or text.startswith(whose)
    if isinstance(error, RuntimeError) and not is_told:
        raise error
    sentence = sentence_of(error)
    for name in whose:
        sentence = sentence.removeprefix(name)
    say(f"the run failed: {sentence}")
    is_own = not isinstance(error, RuntimeError) or isinstance(error, ItemError) or LOST in text
    if not is_first() and is_own:  # the others may know nothing of it
        print(f"maskcl: process {number()}: {printable(sentence)}", file=sys.stderr, flush=True)
    return 1


def interrupted(error: BaseException, directory: Path, method: str | None = None) -> int:
    """Say how to go on with a run of the method."""
    if method is not None and (directory / CONFIG).is_file():
        line = f"maskcl train {method} --out {shlex.quote(str(directory))} --resume"
        return stopped(error, f"; to go on from the last whole epoch: {line}")
    return stopped(error, " before anything was written")


def stopped(error: BaseException, rest: str) -> int:
    """Say that a person has ended the command, or what read its output: as shells count it."""
    if isinstance(error, BrokenPipeError):
        say(f"nobody reads the output any more: ended{rest}")
        return CLOSED
    say(f"interrupted{rest}")
    return 130


def refuse(sentence: str) -> int:
    """Say what was wrong with what a person asked for; the exit code."""
    say(sentence)
    return 2
