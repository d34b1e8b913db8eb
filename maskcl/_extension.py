"""Loads the native libraries once and keeps the reason where one is absent.

``maskcl._C`` holds the CPU kernels, ``libmaskcl_cuda.so`` the CUDA kernels; loading them registers
kernels under the schemas of :mod:`maskcl.schemas`. A library that was never built is no news;
one that exists and does not load is said once, as a warning. Neither breaks the import.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

__all__ = ["build_record", "load", "reasons", "status"]

OLDEST_TORCH = (2, 11)
REBUILD = (
    "rebuild with `pip install --no-build-isolation --force-reinstall --no-deps .`"
    " in the sources of maskcl"
)
_FOLDER = Path(__file__).resolve().parent
_CUDA_LIBRARY = _FOLDER / "libmaskcl_cuda.so"

#: Why a backend is absent, by name ("cpp", "cuda"); a backend that is loaded has no entry.
reasons: dict[str, str] = {}
_loaded = False


class _BrokenError(Exception):
    """A library is there and cannot be used; the message says why."""


class _AbsentError(Exception):
    """A library is not there, or this torch has no use for it; the message says why."""


def build_record() -> dict[str, Any]:
    """What setup.py wrote about the build; empty where nothing was built."""
    try:
        record = json.loads((_FOLDER / "_build.json").read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def load() -> None:
    """Load what is there; :data:`reasons` says why something is not. Later calls do nothing."""
    global _loaded
    if _loaded:
        return
    _loaded = True
    record = build_record()
    for name, loader in (("cpp", _load_cpp), ("cuda", _load_cuda)):
        try:
            loader(record)
        except _AbsentError as error:
            reasons[name] = str(error)
        except _BrokenError as error:
            reasons[name] = f"{error}; it was built for {_built_for(name, record)}; {REBUILD}"
            warnings.warn(f"maskcl runs without its {name} library: {reasons[name]}", stacklevel=2)


def status() -> dict[str, Any]:
    """What is loaded and what was built, for ``maskcl info``.

    Returns:
        ``cpp`` and ``cuda``: None where loaded, else the reason. ``build``: compiler, Python, torch
        and CUDA of the build, from the library itself where it is loaded.
    """
    facts = {key: value for key, value in build_record().items() if key != "not_built"}
    if _loaded and "cpp" not in reasons:
        facts |= sys.modules["maskcl._C"].build_info()
    return {"cpp": reasons.get("cpp"), "cuda": reasons.get("cuda"), "build": facts}


def _built_for(name: str, record: dict[str, Any]) -> str:
    target = record.get("torch_target", ".".join(map(str, OLDEST_TORCH)))
    words = [record.get("python", "an unknown Python"), f"torch >= {target}"]
    if name == "cuda":
        words.append(f"CUDA {record.get('cuda', 'of unknown version')}")
    return ", ".join(words)


def _check_torch() -> None:
    # Before dlopen: an older torch lacks symbols, and a failed registration ends the process.
    version = tuple(
        int("".join(c for c in part if c.isdigit()) or 0)
        for part in torch.__version__.split(".")[:2]
    )
    if version < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise _BrokenError(f"this is torch {torch.__version__}, older than {oldest}")


def _load_cpp(record: dict[str, Any]) -> None:
    built = sorted(_FOLDER.glob("_C.*so"))
    if not built:
        raise _AbsentError(_not_built("cpp", record))
    mine = [_FOLDER / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    path = next((file for file in mine if file.exists()), None)
    if path is None:
        raise _BrokenError(f"this is {sys.implementation.cache_tag}, found {built[0].name}")
    _check_torch()
    try:
        # By path, not by name: an editable install elsewhere must not lend its library.
        loader = importlib.machinery.ExtensionFileLoader("maskcl._C", str(path))
        spec = importlib.machinery.ModuleSpec("maskcl._C", loader, origin=str(path))
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    except (ImportError, OSError) as error:
        raise _BrokenError(
            f"{path.name} does not load under torch {torch.__version__}: {error}"
        ) from error
    sys.modules["maskcl._C"] = module


def _load_cuda(record: dict[str, Any]) -> None:
    if torch.version.cuda is None:
        raise _AbsentError(f"this torch ({torch.__version__}) has no CUDA")
    if not _CUDA_LIBRARY.exists():
        raise _AbsentError(_not_built("cuda", record))
    _check_torch()
    built = record.get("cuda")
    if built is not None and built.split(".")[0] != torch.version.cuda.split(".")[0]:
        raise _BrokenError(
            f"torch {torch.__version__} is for CUDA {torch.version.cuda}, the library for {built}"
        )
    try:
        torch.ops.load_library(str(_CUDA_LIBRARY))
    except (ImportError, OSError) as error:
        raise _BrokenError(
            f"{_CUDA_LIBRARY.name} does not load under torch {torch.__version__}: {error}"
        ) from error


def _not_built(name: str, record: dict[str, Any]) -> str:
    reason = record.get("not_built", {}).get(name)
    if reason is not None:
        return str(reason)
    return "it was not built; `pip install --no-build-isolation .` in maskcl's sources builds it"
