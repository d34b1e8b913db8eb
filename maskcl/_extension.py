"""Loads the native libraries once and keeps the reason where one is absent.

``libmaskcl_cpu.so`` holds the CPU kernels, ``libmaskcl_cuda.so`` the CUDA kernels; loading them
registers kernels under the schemas of :mod:`maskcl.schemas`. They lie beside this file; the CUDA
library may be a wheel of its own instead: ``maskcl_cuda13`` for a torch of CUDA 13. A library that
was never built is no news; one that exists and does not load is said once, as a warning. Neither
breaks the import.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from maskcl._version import __version__

__all__ = ["build_record", "load", "reasons", "status"]

OLDEST_TORCH = (2, 11)
REBUILD = (
    "rebuild with `pip install --no-build-isolation --force-reinstall --no-deps .`"
    " in the sources of maskcl"
)
_FOLDER = Path(__file__).resolve().parent
_CPU_LIBRARY = _FOLDER / "libmaskcl_cpu.so"
_CUDA_LIBRARY = _FOLDER / "libmaskcl_cuda.so"

#: Why a backend is absent, by name ("cpp", "cuda"); a backend that is loaded has no entry.
reasons: dict[str, str] = {}
_loaded = False


class _BrokenError(Exception):
    """A library is there and cannot be used; the message says why."""


class _AbsentError(Exception):
    """A library is not there, or this torch has no use for it; the message says why."""


def build_record(folder: Path = _FOLDER) -> dict[str, Any]:
    """What setup.py wrote about the build; empty where nothing was built."""
    try:
        record = json.loads((folder / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def load() -> None:
    """Load what is there; :data:`reasons` says why something is not. Later calls do nothing."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    for name, loader in (("cpp", _load_cpp), ("cuda", _load_cuda)):
        try:
            loader()
        except _AbsentError as error:
            reasons[name] = str(error)
        except _BrokenError as error:
            reasons[name] = f"{error}; {REBUILD}"
            warnings.warn(f"maskcl runs without its {name} library: {reasons[name]}", stacklevel=2)


def status() -> dict[str, Any]:
    """What is loaded and what was built, for ``maskcl info``.

    Returns:
        ``cpp`` and ``cuda``: None where loaded, else the reason. ``build``: compiler, torch and
        CUDA of the build, from the CPU library itself where it is loaded.
    """
    facts = build_record()
    if _loaded and "cpp" not in reasons:
        facts |= _build_info()
    package = _cuda_package()
    if _loaded and "cuda" not in reasons and package is not None:
        facts |= build_record(package)
    build = {key: facts[key] for key in facts if key not in ("not_built", "maskcl")}
    return {"cpp": reasons.get("cpp"), "cuda": reasons.get("cuda"), "build": build}


def _build_info() -> dict[str, str]:
    """What the CPU library says of itself, a line ``key=value`` each."""
    tell = ctypes.CDLL(str(_CPU_LIBRARY)).maskcl_build_info
    tell.restype = ctypes.c_char_p
    return dict(line.split("=", 1) for line in tell().decode().splitlines())


def _check_torch() -> None:
    # Before dlopen: an older torch lacks symbols, and a failed registration ends the process.
    version = tuple(
        int("".join(c for c in part if c.isdigit()) or 0)
        for part in torch.__version__.split(".")[:2]
    )
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise _BrokenError(f"this is torch {torch.__version__}, older than {oldest}")


def _load_cpp() -> None:
    if not _CPU_LIBRARY.exists():
        raise _AbsentError(_not_built("cpp"))
    _check_torch()
    _open(_CPU_LIBRARY, build_record())


def _load_cuda() -> None:
    if torch.version.cuda is None:
        raise _AbsentError(f"this torch ({torch.__version__}) has no CUDA")
    package = _cuda_package()
    if package is None:
        name = f"maskcl-cuda{torch.version.cuda.split('.')[0]}"
        raise _AbsentError(f"{_not_built('cuda')}; no wheel {name} is installed either")
    record = build_record(package)
    version = record.get("maskcl", __version__)
    if version != __version__:
        raise _BrokenError(f"{package.name} is of maskcl {version}, this is maskcl {__version__}")
    _check_torch()
    built = record.get("cuda")
    if built is not None and built.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise _BrokenError(
            f"torch {torch.__version__} is for CUDA {torch.version.cuda}, the library for {built}"
        )
    _open(package / _CUDA_LIBRARY.name, record)


def _cuda_package() -> Path | None:
    """The folder of the CUDA library: this one, else that of the wheel for torch's CUDA."""
    if _CUDA_LIBRARY.exists() or torch.version.cuda is None:
        return _FOLDER
    spec = importlib.util.find_spec(f"maskcl_cuda{torch.version.cuda.split('.')[0]}")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _open(path: Path, record: dict[str, Any]) -> None:
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        target = record.get("torch_target", ".".join(map(str, OLDEST_TORCH)))
        words = [record.get("platform", "an unknown platform"), f"torch >= {target}"]
        if path.name == _CUDA_LIBRARY.name:
            words.append(f"CUDA {record.get('cuda', 'of unknown version')}")
        raise _BrokenError(
            f"{path.name} does not load under torch {torch.__version__}: {error};"
            f" it was built for {', '.join(words)}"
        ) from error


def _not_built(name: str) -> str:
    reason = build_record().get("not_built", {}).get(name)
    if reason is not None:
        return str(reason)
    return "it was not built; `pip install --no-build-isolation .` in maskcl's sources builds it"
