"""Functions timed in turn: a machine that changes under a run changes under all of them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Spread", "Timed", "copy_of", "in_turn", "machine"]

_WARM_UP, _MOST = 2, 5000
_LONG = 10  # turns: what takes longer finds no cache as it left it


class Timed(NamedTuple):
    """A function and what is around its calls, outside of what is timed."""

    run: Callable[[], Any]
    around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext


class Spread(NamedTuple):
    """Microseconds of a call: the median and the quartiles."""

    median: float
    low: float
    high: float


def in_turn(
    functions: Mapping[str, Timed], seconds: float, fewest: int = 5, turn: float = 0.0
) -> dict[str, Spread]:
    """Call the functions one after the other, again and again.

    Args:
        functions: by name.
        seconds: that all of this should take, calls to warm up aside; each is called 5,000 times
            at most.
        fewest: rounds, however long they take.
        turn: seconds of calls of one function before it is another's turn, for what is called in a
            loop: it finds its own data, code and memory as it left them. The first call of a turn
            is not counted, unless it takes ten turns.

    Returns:
        By name the spread over calls; a GPU's work is waited for in every call.
    """
    for function in functions.values():
        with function.around():
            for _ in range(_WARM_UP):
                _seconds(function.run)
    taken: dict[str, list[float]] = {name: [] for name in functions}
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < fewest or (rounds < _MOST and time.perf_counter() < end):
        rounds += 1
        for name, function in functions.items():
            with function.around():
                taken[name] += _turn(function.run, turn)
    return {name: _spread(times) for name, times in taken.items()}


def _turn(run: Callable[[], Any], turn: float) -> list[float]:
    """Microseconds of each call that counts."""
    first = _seconds(run)
    if first > _LONG * turn:
        return [1e6 * first]
    taken: list[float] = []
    while not taken or sum(taken) < turn:
        taken.append(_seconds(run))
    return [1e6 * each for each in taken]


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _spread(times: list[float]) -> Spread:
    low, median, high = statistics.quantiles(times, n=4)
    return Spread(median, low, high)


def copy_of(moved: int, device: str) -> Callable[[], Any]:
    """A copy that reads and writes ``moved`` bytes in all, into memory that is mapped already."""
    source = torch.ones(max(1, moved // 8), dtype=torch.float32, device=device)
    target = torch.empty_like(source).fill_(0)
    return lambda: target.copy_(source)


def machine() -> str:
    """The name of the processor, and of the GPU where there is one."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    parts = [names[0] if names else "unknown processor"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
