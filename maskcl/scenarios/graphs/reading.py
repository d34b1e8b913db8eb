"""Files of graphs, read with care: nothing in them is run, nothing is written beside them."""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from maskcl.extras import install
from maskcl.scenarios.base import ScenarioError


def find_folder(name: str, data: Path | None, file: str, places: list[str]) -> Path:
    """The folder under ``data``, at one of ``places``, that holds ``file``.

    Raises:
        ScenarioError: no data are given, or there is no such file.
    """
    if data is None:
        raise ScenarioError(f"{name} reads files: say where they are with --data DIR")
    if not data.is_dir():
        raise ScenarioError(f"--data {data} is not a folder")
    for place in places:
        if (data / place / file).is_file():
            return data / place
    raise ScenarioError(f"missing file: wanted {data / places[0] / file}")


def require(path: Path) -> None:
    """Raise a ScenarioError unless there is such a file."""
    if not path.is_file():
        raise ScenarioError(f"missing file: wanted {path}")


def require_lines(path: Path) -> None:
    """Raise a ScenarioError unless there is such a file and its last line ends.

    torch_geometric's reader leaves a last line out that does not, and says nothing.
    """
    require(path)
    if not path.read_bytes().endswith(b"\n"):
        raise ScenarioError(f"{path} ends within a line: it is cut off or damaged")


def geometric(name: str) -> None:
    """Raise a ScenarioError unless torch_geometric can be imported."""
    try:
        import torch_geometric  # noqa: F401
    except ImportError as error:
        raise ScenarioError(f"{name} needs torch_geometric: {install('graph')}") from error


def read_pickle(path: Path) -> Any:
    """What a pickle of numpy arrays, scipy matrices, lists and dictionaries holds.

    Raises:
        ScenarioError: it is no pickle, or asks for anything else, which could run code.
    """
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except ImportError as error:
        raise ScenarioError(f"planetoid needs scipy: {install('train')}") from error
    except Exception as error:  # a damaged pickle may raise anything
        raise ScenarioError(f"{path} cannot be read: {first_line(error)}") from error


def check_csr(path: Path, values: Any, columns: Any, starts: Any, shape: Any) -> None:
    """Raise a ScenarioError unless these are the fields of a compressed sparse matrix."""
    numbers = values.dtype.kind in "biuf" and {columns.dtype.kind, starts.dtype.kind} <= {"i", "u"}
    fits = (
        numbers
        and values.ndim == columns.ndim == starts.ndim == 1
        and len(shape) == 2
        and len(values) == len(columns)
        and len(starts) == int(shape[0]) + 1
        and int(starts[0]) == 0
        and int(starts[-1]) == len(columns)
        and bool((np.diff(starts.astype(np.int64)) >= 0).all())
        and (not len(columns) or 0 <= int(columns.min()) <= int(columns.max()) < int(shape[1]))
        and bool(np.isfinite(values).all())
    )
    if not fits:
        raise ScenarioError(f"{path} holds a sparse matrix whose parts do not fit: it is damaged")


def first_line(error: Exception) -> str:
    """Of an error's message; its class where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


class _Unpickler(pickle.Unpickler):
    """Knows the few names that Planetoid's files need; any other could run code."""

    def find_class(self, module: str, name: str) -> Any:
        known = _known_names()
        if (module, name) not in known:
            raise pickle.UnpicklingError(
                f"it asks for {module}.{name}, which such data do not need"
            )
        return known[module, name]


def _known_names() -> dict[tuple[str, str], Any]:
    from scipy.sparse import csr_matrix

    known: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("collections", "defaultdict"): defaultdict,
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[module, "_reconstruct"] = np.zeros(1).__reduce__()[0]
    for module in ("scipy.sparse.csr", "scipy.sparse._csr"):
        known[module, "csr_matrix"] = csr_matrix
    for module in ("__builtin__", "builtins"):
        known[module, "list"] = list
    return known
