"""Run by test_processes: command lines, each in two processes as torchrun starts them.

    python -m tests.cli.two_commands COMMANDS

``COMMANDS`` is JSON, a list of [kill, arguments]: where kill is not 0, the first process is killed
by SIGKILL right after it has written that many checkpoints. Forked as in
tests.training.two_processes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys

import torch

from maskcl.cli import main as maskcl_main
from tests import resume_run
from tests.training.two_processes import forked


def child(rank: int, kill: int, arguments: list[str]) -> int:
    faulthandler.dump_traceback_later(resume_run.SECONDS, exit=True)
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    if kill and rank == 0:
        resume_run.kill_at_rename(kill, before=False)
    return maskcl_main(arguments)


def main() -> None:
    os.fsync = lambda descriptor: None
    import maskcl.cli.app
    import maskcl.cli.train  # noqa: F401 (once, for all that are forked)

    for kill, arguments in json.loads(sys.argv[1]):
        print("begin", flush=True)
        codes = forked(lambda rank, k=kill, a=arguments: child(rank, k, a))
        print("exit", *codes, flush=True)


if __name__ == "__main__":
    main()
