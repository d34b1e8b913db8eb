"""What the command line says, and what happens when nobody listens any more."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

from rich.console import Console

from maskcl.text import printable, sentence_of

CLOSED = 141
"""Exit code where nobody reads what is said: what shells count for SIGPIPE."""


class Output(Console):
    """Standard output: names in brackets are no markup, and a closed pipe is an error."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Pass it on, so that a run ends as on Ctrl-C and says how to go on."""
        raise


def show(text: str) -> None:
    """Print lines, nothing in which acts on the terminal."""
    print("\n".join(printable(line) for line in text.split("\n")))


def say(sentence: Any) -> None:
    """Print ``maskcl: ...`` as one line on stderr, if anybody reads that."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(f"maskcl: {printable(' '.join(str(sentence).split()))}", file=sys.stderr)
            sys.stderr.flush()


def finish(code: int) -> int:
    """The exit code, once all that was said has gone out; so that nothing fails after this."""
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
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
