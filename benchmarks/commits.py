"""Which code a figure is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ["maskcl", "csrc", "setup.py", "benchmarks/*.py"]


def commit() -> str:
    """The last commit that changed code, with + where the tree's code differs from it."""
    found = git("log", "-1", "--format=%h", "--abbrev=7", "--", *CODE)
    return (found or "unknown") + ("+" if git("status", "--porcelain", "--", *CODE) else "")


def git(*arguments: str) -> str:
    """What git says about this checkout; nothing where there is no git or no repository."""
    try:
        run = subprocess.run(["git", *arguments], cwd=ROOT, text=True, capture_output=True)
    except OSError:
        return ""
    return run.stdout.strip()
