"""Modules of these tests that start processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import resume_run


def last_line_of(module: str, folder: Path) -> str:
    """Run ``python -m module folder``; what it says last, and behind it all of stderr."""
    environment = os.environ | resume_run.ONE_THREAD
    environment |= {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-m", module, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return "".join(run.stdout.splitlines()[-1:]) + run.stderr


def raised(function: Callable[[], Any]) -> str:
    """Class and text of what a call raises; empty where it raises nothing."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
