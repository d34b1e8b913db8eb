"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RESULT = "result.json"


class ReportError(ValueError):
    """A run that cannot be read; the message is one sentence for the person who asked."""


def write_atomic(path: str | os.PathLike[str], content: bytes) -> None:
    """Write under a temporary name, flush to the disk, rename: no reader sees half a file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_result(result: dict[str, Any], directory: str | os.PathLike[str]) -> Path:
    """Write result.json. NaN is refused (ValueError): undefined values are None and a reason."""
    path = Path(directory) / RESULT
    text = json.dumps(result, indent=1, allow_nan=False)
    write_atomic(path, (text + "\n").encode())
    return path


def read_result(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The result.json of a run's directory.

    Raises:
        ReportError: there is none, or it is not one of maskcl's.
    """
    path = Path(directory)
    path = path if path.suffix == ".json" else path / RESULT
    try:
        result = json.loads(path.read_text())
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist: is the run finished?") from None
    except NotADirectoryError:
        raise ReportError(f"{Path(directory)} is not a run's directory") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}") from None
    if not isinstance(result, dict) or result.get("format") != "maskcl-result":
        raise ReportError(f"{path} is not a result of maskcl")
    return result
