"""Shared by the benchmarks: two CPU threads, correctness first, facts for the table.

Run `python -m benchmarks` from the repository's root, or `pytest benchmarks -o
python_files='bench_*.py'`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.pieces import Piece
from maskcl import backends
from maskcl.bench import timing

ROOT = Path(__file__).resolve().parents[1]
_verdicts: dict[str, bool] = {}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)


def device() -> str:
    """The device under test: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _is_right(stem: str) -> bool:
    """Whether the op's own tests pass here, on a GPU those of the backend timed; asked once."""
    if stem not in _verdicts:
        environment = {**os.environ, "OMP_NUM_THREADS": "2"}
        command = [sys.executable, "-m", "pytest", "-q", "-x", f"tests/ops/test_{stem}.py"]
        if device() == "cuda":
            command += ["-k", backends.choose("hat_gate", "cuda", torch.float32) + "-cuda"]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
        _verdicts[stem] = run.returncode == 0
    return _verdicts[stem]


def begun(request: pytest.FixtureRequest, group: str) -> None:
    """Skip where the piece that is run ends in front of this group."""
    for plugin in request.config.pluginmanager.get_plugins():
        if isinstance(plugin, Piece):
            plugin.begin(group)


Timed = Callable[..., None]


@pytest.fixture
def timed(request: pytest.FixtureRequest, benchmark: Any) -> Timed:
    """Time ``function`` as one row of ``group``; ``floor`` is the least bytes that must move."""

    def run(group: str, name: str, function: Callable[[], Any], floor: int = 0) -> None:
        begun(request, group)
        stem = Path(request.fspath).stem.removeprefix("bench_")
        if (ROOT / f"tests/ops/test_{stem}.py").exists() and not _is_right(stem):
            pytest.fail(f"tests/ops/test_{stem}.py fails: no speed figure for a wrong op")
        benchmark.group = group
        benchmark.extra_info.update(name=name, floor=floor, device=device())
        if "torch.compile" in name:  # for this shape alone, not a compromise with the last one's
            torch.compiler.reset()
        if device() == "cuda":
            inner = function

            def function() -> None:
                inner()
                torch.cuda.synchronize()

        for _ in range(3):
            function()
        benchmark(function)

    return run


def copy_of(bytes_moved: int) -> Callable[[], Any]:
    """A memcpy that reads and writes ``bytes_moved`` in all."""
    return timing.copy_of(bytes_moved, device())
