"""Figures as text for a person."""

from __future__ import annotations

from collections.abc import Sequence

from maskcl.text import printable


def number(value: float | None, digits: int) -> str:
    """A figure for a person; n/a where there is none. -0.0 reads 0."""
    if value is None or value != value:
        return "n/a"
    return f"{value + 0.0:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return "n/a" if value is None else f"{100 * value:.1f} %"


def byte_count(value: float | None) -> str:
    """Bytes, to the byte: sizes here are compared, not admired."""
    return "n/a" if value is None else f"{value:,.0f} B"


def seconds(value: float) -> str:
    """A duration for a person."""
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def scientific(value: float | None) -> str:
    """A figure whose power of ten matters."""
    return "n/a" if value is None or value != value else f"{value:.2e}"


def grid(rows: Sequence[Sequence[str]], *, words: int = 1) -> str:
    """Columns of equal width; the first ``words`` are flush left, the others right.

    Names in it may come from files: every cell is `printable`.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        sized = list(zip(row, widths, strict=True))
        cells = [cell.ljust(width) for cell, width in sized[:words]]
        cells += [cell.rjust(width) for cell, width in sized[words:]]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
