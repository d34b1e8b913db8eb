"""What each backend supports and why not; which one an op runs on.

``select`` depends on device and dtype alone, so that a compiled graph keeps its choice. An explicit
choice (:func:`use_backend`) never falls back: it raises with the reason. The automatic one takes
the first backend of the device's list that supports the input.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from maskcl import _extension, reference, schemas
from maskcl._version import __version__

__all__ = ["BACKENDS", "BackendError", "not_supported_reasons", "select", "use_backend"]


class BackendError(RuntimeError):
    """The backend asked for cannot run this op on this input; the message says why."""


@dataclass(frozen=True)
class Backend:
    """A declaration: where the backend runs and on what."""

    devices: tuple[str, ...] | None  # None: any
    dtypes: tuple[torch.dtype, ...]
    absent: str | None  # why it cannot run at all, None where it can


_HALVES = (torch.bfloat16, torch.float16)
_FLOATS = (torch.float64, torch.float32, *_HALVES)


def _triton_absent() -> str | None:
    # A folder that happens to be called triton is not it.
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return "triton is not installed (pip install triton; Linux only)"
    return None


def _triton_devices() -> tuple[str, ...]:
    # The interpreter runs kernels on the CPU; Triton itself reads this variable at its import.
    return ("cpu", "cuda") if os.environ.get("TRITON_INTERPRET") == "1" else ("cuda",)


def _late(module: str, name: str) -> Callable[..., Any]:
    """The function ``name`` of ``module``, imported when it is first called."""

    def call(*args: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args)

    return call


def _register() -> None:
    """Give every op its floor, the reference, and its Triton launcher; C++ and CUDA do their own.

    They come on the CPU and CUDA keys, which go before these.
    """
    key = "CompositeExplicitAutograd"
    for op, stem in schemas.STEM_OF.items():
        schemas.library.impl(op, getattr(getattr(reference, stem), op), key)
        launcher = _late(f"maskcl.triton.{stem}", op)
        schemas.library.impl(f"triton_{op}", launcher, key)


_register()
_extension.load()
BACKENDS = {
    "reference": Backend(None, _FLOATS, None),
    "cpp": Backend(("cpu",), _FLOATS, _extension.reasons.get("cpp")),
    "triton": Backend(_triton_devices(), (torch.float32, *_HALVES), _triton_absent()),
    "cuda": Backend(("cuda",), _FLOATS, _extension.reasons.get("cuda")),
}
_PREFERENCE = {"cpu": ("cpp", "reference"), "cuda": ("cuda", "triton", "reference")}
# Where the threshold must be inside the matrix product, which cuBLAS cannot do.
_TRITON_FIRST = ("piggyback_linear", "piggyback_linear_backward")


def _order(op: str, device: str) -> tuple[str, ...]:
    """The backends that are here, the preferred one first."""
    names = _PREFERENCE.get(device, ("reference",))
    if op in _TRITON_FIRST:
        names = tuple(sorted(names, key=lambda name: name != "triton"))
    return tuple(name for name in names if BACKENDS[name].absent is None)


def _versioned(run: Callable[..., Any], written: tuple[int, ...]) -> Callable[..., Any]:
    """``run`` where autograd learns which arguments are written, as by torch's in-place ops.

    Kernels know nothing of versions: a graph that kept the tensor would take what is there now.
    """
    lists = itemgetter(*written)

    def first(target: Tensor | list[Tensor], *args: Any) -> Any:
        increment_version(target)
        return run(target, *args)

    def several(*args: Any) -> Any:
        # The compiler cannot see into an itemgetter.
        found = [args[i] for i in written] if torch.compiler.is_compiling() else lists(args)
        increment_version([*chain.from_iterable(found)])
        return run(*args)

    return first if written == (0,) else several


def _implementations() -> dict[str, dict[str, Callable[..., Any]]]:
    table: dict[str, dict[str, Callable[..., Any]]] = {name: {} for name in BACKENDS}
    for op, stem in schemas.STEM_OF.items():
        native = getattr(torch.ops.maskcl, op).default
        table["reference"][op] = getattr(getattr(reference, stem), op)
        table["cpp"][op] = table["cuda"][op] = native
        table["triton"][op] = getattr(torch.ops.maskcl, "triton_" + op).default
        arguments = native._schema.arguments
        written = tuple(i for i, a in enumerate(arguments) if a.alias_info is not None)
        if written:
            for name in BACKENDS:
                table[name][op] = _versioned(table[name][op], written)
    return table


_TABLE = _implementations()
# The automatic choice, looked up once: an op's call must not cost more than its kernel.
_ON_CPU, _ON_CUDA = (
    {
        (op, dtype): _TABLE[name][op]
        for op in schemas.STEM_OF
        for name in reversed(_order(op, device))
        for dtype in BACKENDS[name].dtypes
    }
    for device in ("cpu", "cuda")
)
# One choice for the process, not for the thread: the backward of a CUDA graph runs in another
# thread.
_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op inside on backend ``name``: "reference", "cpp", "triton" or "cuda".

    Raises:
        ValueError: the name is unknown.
        BackendError: the backend is absent here (at once), or, at an op's call, does not support
            the input's device or dtype.
    """
    global _forced
    if name not in BACKENDS:
        raise ValueError(f"use_backend: found {name!r}, wanted one of {', '.join(BACKENDS)}")
    if BACKENDS[name].absent is not None:
        raise BackendError(f"use_backend: {name} is not available: {BACKENDS[name].absent}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def graph_key() -> tuple[str | None, str]:
    """What the graph of a traced op depends on beside its arguments (see ``schemas.TRACED``).

    The backend that was asked for, None where each op's is chosen, and the version of maskcl: torch
    keeps on disk what it made of a graph.
    """
    return _forced, __version__


def not_supported_reasons(backend: str, op: str, device: str, dtype: torch.dtype) -> list[str]:
    """Why ``backend`` cannot run ``op`` on such a tensor; empty where it can."""
    declared = BACKENDS[backend]
    reasons = [] if declared.absent is None else [declared.absent]
    if op not in schemas.STEM_OF:
        reasons.append(f"{op} is not an op of maskcl")
    if declared.devices is not None and device not in declared.devices:
        reasons.append(f"{backend} runs on {' and '.join(declared.devices)}, not on {device}")
    if dtype not in declared.dtypes:
        reasons.append(f"{backend} does not take {dtype}")
    return reasons


def select(op: str, tensor: Tensor) -> Callable[..., Any]:
    """The implementation of low-level ``op`` for tensors on this one's device and of its dtype."""
    found = _chosen(op, tensor, tensor.dtype)
    if found is not None:
        return found
    return _TABLE[choose(op, tensor.device.type, tensor.dtype)][op]


def select_any(op: str, tensor: Tensor) -> Callable[..., Any]:
    """The same for an op that takes words or masks, whose dtype says nothing."""
    found = _chosen(op, tensor, torch.float32)
    if found is not None:
        return found
    return _TABLE[choose(op, tensor.device.type, torch.float32)][op]


def _chosen(op: str, tensor: Tensor, dtype: torch.dtype) -> Callable[..., Any] | None:
    if _forced is not None:
        return None
    if tensor.is_cpu:  # a device's type is a string that is made anew
        return _ON_CPU.get((op, dtype))
    return _ON_CUDA.get((op, dtype)) if tensor.is_cuda else None


def select_visible(op: str, tensor: Tensor) -> Callable[..., Any]:
    """`select`; where torch.compile traces and no backend was asked for, the plain formula.

    The compiler fuses torch's own operations with what is around them, where a kernel of ours would
    be a wall. For ops that are cheap beside what they could be fused with.
    """
    if _forced is None and torch.compiler.is_compiling():
        return _TABLE["reference"][op]
    return select(op, tensor)


def choose(op: str, device: str, dtype: torch.dtype) -> str:
    """The name of the backend that :func:`select` takes."""
    if _forced is not None:
        reasons = not_supported_reasons(_forced, op, device, dtype)
        if reasons:
            raise BackendError(f"{op}: {_forced} was asked for, but {'; '.join(reasons)}")
        return _forced
    for name in _order(op, device):
        if dtype in BACKENDS[name].dtypes:
            return name
    lines = [
        f"{name}: {'; '.join(not_supported_reasons(name, op, device, dtype))}" for name in BACKENDS
    ]
    raise BackendError(f"{op}: no backend takes {dtype} on {device}\n  " + "\n  ".join(lines))
