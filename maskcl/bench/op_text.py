"""Times of ops as a table for a person and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maskcl.bench.op_times import COMPILED, COPY, EAGER, OpTimes

__all__ = ["op_data", "op_text"]

_BESIDE = {"x eager": EAGER, "x compiled": COMPILED, "x copy": COPY}


def _ratios(found: OpTimes, name: str) -> Iterator[float | None]:
    """Of a row's time, to eager's, compiled torch's and the copy's."""
    for other in _BESIDE.values():
        beside = found.times.get(other)
        yield None if beside is None else found.times[name].median / beside.median


def op_text(found: OpTimes) -> str:
    """A block of lines: a row's median and quartiles in microseconds, its ratios to the others."""
    columns = ("us", "p25", "p75", *_BESIDE)
    lines = [f"{found.op}, {found.what}", f"  {'':24}" + "".join(f"{c:>12}" for c in columns)]
    for name, spread in found.times.items():
        cells = [f"{value:12.1f}" for value in (spread.median, spread.low, spread.high)]
        cells += [" " * 12 if ratio is None else f"{ratio:12.2f}" for ratio in _ratios(found, name)]
        lines.append(f"  {name:24}{''.join(cells)}".rstrip())
    lines += [f"  {name}: {why}" for name, why in found.absent.items()]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in found.losses())])


def op_data(found: OpTimes) -> dict[str, Any]:
    """The same for JSON."""
    keys = [name.replace(" ", "_").replace("x_", "of_") for name in _BESIDE]
    rows = [
        {
            "name": name,
            "ours": name in found.ours,
            "us": spread.median,
            "us_p25": spread.low,
            "us_p75": spread.high,
            **dict(zip(keys, _ratios(found, name), strict=True)),
        }
        for name, spread in found.times.items()
    ]
    return {
        "op": found.op,
        "what": found.what,
        "rows": rows,
        "absent": found.absent,
        "losses": found.losses(),
    }
