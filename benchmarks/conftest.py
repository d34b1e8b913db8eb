"""Shared by the benchmarks: two CPU threads, correctness first, facts for the table.

Run `python -m benchmarks` from the repository's root, or `pytest benchmarks -o
python_files='bench_*.py'`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.pieces import Piece
from maskcl import ops
from maskcl.bench import cases, op_results, timing

_verdicts: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(2)


def device() -> str:
    """The device under test: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wrong(stem: str) -> str:
    """The first op of this stem whose result is not its formula's, and how; asked once."""
    if stem not in _verdicts:
        here = [op for op in cases() if getattr(ops, op).__module__ == f"maskcl.ops.{stem}"]
        found = ((op, op_results.wrong(op, 40, 3, device())) for op in here)
        _verdicts[stem] = next((f"{op}: {words}" for op, words in found if words), "")
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
        if wrong := _wrong(Path(request.fspath).stem.removeprefix("bench_")):
            pytest.fail(f"no speed figure for a wrong op: {wrong}")
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
