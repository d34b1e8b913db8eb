"""The command line: ``maskcl train``, ``maskcl info``, ``maskcl report``.

Bad input gets one sentence on stderr and exit code 2; Ctrl-C gets 130 and how to go on.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from maskcl.extras import install

# They import torch and read data before they have something to say.
_LONG = ("train", "pretrain", "reproduce")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None for ``sys.argv``.

    Returns:
        The exit code: 0, 1 (a run failed), 2 (bad input), 130 (interrupted), 141 (nobody reads the
        output).
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    is_long = len(given) > 1 and given[0] in _LONG and not {"-h", "--help"} & set(given)
    is_first = os.environ.get("RANK", "0") == "0"  # of those that torchrun starts
    # A log and a program that reads the errors have no use for it.
    is_seen = is_first and sys.stderr is not None and sys.stderr.isatty()
    if is_long and is_seen and "torch" not in sys.modules:
        print("maskcl: starting", file=sys.stderr, flush=True)
    try:
        from maskcl.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "maskcl":
            raise
        if given == ["info"] and error.name != "torch":  # what is missing is what it is to say
            from maskcl import info

            info.main()
            return 0
        print(
            f"maskcl: the command line needs {error.name}: {install('train')}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:  # torch takes seconds to import
        print("maskcl: interrupted before anything was written", file=sys.stderr)
        return 130
    return run(given)
