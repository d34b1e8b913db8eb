"""A run's report: result.json, one self-contained page, the pictures it shows, comparisons."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from maskcl.report.compare import compare
from maskcl.report.files import ReportError, read_result, write_atomic, write_result
from maskcl.report.masks import decode_masks, encode_masks
from maskcl.report.methods import facts

__all__ = [
    "ReportError",
    "compare",
    "decode_masks",
    "encode_masks",
    "facts",
    "read_result",
    "write_report",
    "write_result",
]


def write_report(result: dict[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write report.html and the PNGs that it shows, each as a whole file; returns its path.

    Args:
        result: the content of result.json.
        directory: exists.
    """
    from maskcl.report.figures import draw_all
    from maskcl.report.page import page

    folder = Path(directory)
    figures = draw_all(result)
    for name, png in figures.items():
        write_atomic(folder / f"{name}.png", png)
    path = folder / "report.html"
    write_atomic(path, page(result, figures).encode(errors="backslashreplace"))
    return path
