"""A run's report: result.json, one self-contained page, the pictures it shows, comparisons."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from maskcl.extras import install
from maskcl.report.compare import compare
from maskcl.report.files import ReportError, read_result, write_atomic, write_result
from maskcl.report.masks import decode_masks, encode_masks
from maskcl.report.methods import facts

__all__ = [
    "ReportError",
    "check_drawing",
    "compare",
    "decode_masks",
    "encode_masks",
    "facts",
    "read_result",
    "write_page",
    "write_report",
    "write_result",
    "write_run",
]


def check_drawing() -> None:
    """Raise ImportError, which says what to install, where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise ImportError(f"a report draws with matplotlib: {install('train')}")


def write_report(result: dict[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write report.html and its pictures as SVG files, each as a whole file; returns its path.

    Args:
        result: the content of result.json.
        directory: exists.

    Raises:
        ImportError: matplotlib is missing.
    """
    from maskcl.report.svg import standalone

    folder = Path(directory)
    path = folder / "report.html"
    for name, element in write_page(result, path).items():
        write_atomic(folder / f"{name}.svg", standalone(element))
    return path


def write_page(
    result: dict[str, Any], path: str | os.PathLike[str], *, note: str = "", reload: int = 0
) -> dict[str, str]:
    """Write one page of a run, finished or on its way; returns its pictures by name.

    Args:
        result: the content of result.json, or as much of it as there is.
        path: of the file.
        note: a sentence at its top.
        reload: seconds after which a browser reads it again; 0: never.

    Raises:
        ImportError: matplotlib is missing.
    """
    check_drawing()
    from maskcl.report.figures import draw_all
    from maskcl.report.page import page

    figures = draw_all(result)
    write_atomic(
        path, page(result, figures, note=note, reload=reload).encode(errors="backslashreplace")
    )
    return figures


def write_run(make: Callable[[], dict[str, Any]], directory: str | os.PathLike[str]) -> Path:
    """Write a finished run's result.json and its report into a folder; returns the page's path.

    Args:
        make: gives the content of result.json.
        directory: is made where there is none; other files in it stay.

    Raises:
        ImportError: matplotlib is missing; nothing is written then.
        OSError: the folder cannot be written to.
    """
    check_drawing()
    content, folder = make(), Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_result(content, folder)
    return write_report(content, folder)
