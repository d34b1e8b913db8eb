"""The emulated GPU of this process: its kernels in the place of the CPU's, and what tests set.

:func:`install` runs once, before the backends under test are counted (``tests/conftest.py``). From
then on backend "cuda" takes CPU tensors, and "cpp" is absent.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from maskcl import backends
from tests.cuda.emulator import build

SWITCH = "MASKCL_EMULATED"  # "1", or the path of the library that build.py made
ORDERS = ("forward", "reversed", "random", "ahead", "any")  # host/order.h's; any: each block draws

_library: ctypes.CDLL | None = None
_aten = torch.library.Library("aten", "IMPL")


def wanted() -> str | None:
    """What the environment asks of this process; None for an ordinary one."""
    return os.environ.get(SWITCH) or None


def install() -> None:
    """Build the library if need be and register its kernels for CPU tensors."""
    global _library
    _library = ctypes.CDLL(str(build.kernels()) if wanted() == "1" else wanted())
    _library.emulator_launches.restype = ctypes.c_char_p
    _library.emulator_unchecked.restype = ctypes.c_char_p
    torch.backends.mkldnn.enabled = False  # it reads past the rows of strided bfloat16 matrices
    declared = backends.BACKENDS
    declared["cuda"] = replace(declared["cuda"], devices=("cpu",), absent=None)
    declared["cpp"] = replace(declared["cpp"], absent="the emulated GPU's kernels are in its place")
    # Products of halves with float32 sums: cuBLAS has them, torch on a CPU has not.
    for name in ("mm", "bmm"):
        _aten.impl(f"{name}.dtype_out", _product(getattr(torch, name)), "CPU")


def _product(product):
    def out_of(a: Tensor, b: Tensor, dtype: torch.dtype, *, out: Tensor) -> Tensor:
        return out.copy_(product(a.to(dtype), b.to(dtype)))

    return out_of


def _installed() -> ctypes.CDLL:
    assert _library is not None, "the emulated GPU is not installed in this process"
    return _library


def set_order(order: str, seed: int = 0) -> None:
    """In which order threads and blocks run from now on."""
    _installed().emulator_order(ORDERS.index(order), ctypes.c_uint64(seed))


def launches() -> dict[str, int]:
    """How often each compiled instance of each kernel has been launched."""
    lines = _installed().emulator_launches().decode().splitlines()
    # Of emulator::Kernel<&kernel> and emulator::Kernel<&(void kernel<T>(T*))> what is the kernel's.
    found = re.compile(r"(\d+) emulator::Kernel<&\(?(.*?)\)?>")
    counts = [found.fullmatch(line.replace("(anonymous namespace)::", "")) for line in lines]
    return {count[2]: int(count[1]) for count in counts}  # type: ignore[index]


def unchecked() -> str:
    """The kernel whose launch nothing has checked; "" for none."""
    return _installed().emulator_unchecked().decode()


@contextmanager
def devices(current: int, of_tensors: int) -> Iterator[None]:
    """Inside, device ``current`` is the current one, and tensors are on ``of_tensors``."""
    _installed().emulator_devices(current, of_tensors)
    try:
        yield
    finally:
        _installed().emulator_devices(0, 0)


def place(tensor: Tensor, device: int) -> None:
    """Put a tensor on another device than the others; -1 is the host. Until ``devices`` ends."""
    _installed().emulator_place(ctypes.c_void_p(tensor.data_ptr()), device)


@contextmanager
def code_for(ptx: int) -> Iterator[None]:
    """Inside, the code that the device has loaded is that of this PTX version, 75 or 90."""
    _installed().emulator_ptx(ptx)
    try:
        yield
    finally:
        _installed().emulator_ptx(90)
