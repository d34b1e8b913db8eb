"""A run's result.json, written and read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskcl.files import write_atomic, write_json
from maskcl.reading import MissingError, ReadError, read_json
from maskcl.report.result_form import check_result
from maskcl.text import printable, sentence_of
from maskcl.validation import ContentError

__all__ = ["ReportError", "read_result", "whole", "write_atomic", "write_result"]

RESULT = "result.json"


class ReportError(ValueError):
    """A run that cannot be read; the message is one sentence for the person who asked."""


def write_result(result: dict[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write result.json. NaN is refused (ValueError): undefined values are None and a reason."""
    path = Path(directory) / RESULT
    write_json(path, result)
    return path


def read_result(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The result.json of a run's directory, every key that a report uses checked.

    Raises:
        ReportError: there is none, or it is not one of maskcl's.
    """
    path = Path(directory)
    path = path if path.suffix == ".json" else path / RESULT
    try:
        result: dict[str, Any] = read_json(path)
        check_result(result, printable(path))
    except MissingError as error:
        if path.parent.exists() and not path.parent.is_dir():
            raise ReportError(f"{printable(path.parent)} is not a run's directory") from None
        raise ReportError(f"{error}: is the run finished?") from None
    except (ReadError, ContentError) as error:
        raise ReportError(str(error)) from None
    return result


@contextlib.contextmanager
def whole(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Inside, a result of this directory is shown: if its figures contradict, a sentence says so.

    Raises:
        ReportError: they do.
    """
    try:
        yield
    except ReportError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {sentence_of(error)}"
        where = printable(Path(directory) / RESULT)
        raise ReportError(f"{where} does not hold together ({said})") from None
