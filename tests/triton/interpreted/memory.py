"""What Triton's interpreter lets pass: accesses outside of every tensor, programs that meet.

Every load and store of an interpreted kernel is looked at before it is made. An address has to lie
in the memory of a tensor that somebody has asked for its address, as the interpreter asks those
that a kernel is given, and launchers those that they put into a table. No element may be written by
one program and touched by another: there are no atomics here, and programs run in any order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from triton.runtime import interpreter

MOST = 4_000_000  # elements of a launch that are kept to look for programs that meet


class AccessError(Exception):
    """What is wrong with an access, and the line that makes it."""


def line() -> str:
    """File and line of the kernel that runs."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "maskcl/triton" in name or name.endswith("test_memory.py"):
            return f"{name.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown line"


class Memory:
    """Memory of one test's tensors, and who touched what in the launch that runs."""

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}  # storages: their memory is not another's before the end
        self.begins = self.ends = np.zeros(0, np.int64)
        self.clear()

    def clear(self) -> None:
        self.touched: list[tuple[bool, int, np.ndarray, str]] = []
        self.count = 0

    def know(self, tensor: torch.Tensor) -> None:
        """From here on a kernel may touch the memory of this tensor."""
        storage = tensor.untyped_storage()
        begin = storage.data_ptr()
        if begin in self.kept and self.kept[begin].nbytes() >= storage.nbytes():
            return
        self.kept[begin] = storage
        self.begins = np.array(sorted(self.kept), np.int64)
        self.ends = np.array([b + self.kept[b].nbytes() for b in self.begins.tolist()], np.int64)

    def check(self, pointers: Any, mask: Any, is_write: bool) -> None:
        """Raise where an access is outside; remember the others."""
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        at = np.broadcast_to(pointers.data, mask.data.shape)[mask.data.astype(bool)].astype(
            np.int64
        )
        found = np.searchsorted(self.begins, at, side="right") - 1
        outside = (found < 0) | (at + size > self.ends[found]) if len(self.ends) else at >= 0
        if outside.any():
            what = "writes" if is_write else "reads"
            raise AccessError(
                f"{line()} {what} {int(outside.sum())} elements outside of all tensors"
            )
        self.count += at.size
        if self.count <= MOST:
            x, y, z = interpreter.interpreter_builder.grid_idx
            self.touched.append((is_write, (x << 40) + (y << 20) + z, at, line()))

    def check_programs(self) -> None:
        """Raise where two programs of the launch met."""
        touched, count = self.touched, self.count
        self.clear()
        written = [(at, program) for is_write, program, at, _ in touched if is_write]
        if count > MOST or not written:
            return
        places = np.concatenate([at for at, _ in written])
        programs = np.concatenate([np.full(at.size, program) for at, program in written])
        order = np.argsort(places, kind="stable")
        places, programs = places[order], programs[order]
        if ((places[1:] == places[:-1]) & (programs[1:] != programs[:-1])).any():
            raise AccessError("two programs write one element")
        for is_write, program, at, where in touched:
            found = np.minimum(np.searchsorted(places, at), places.size - 1)
            if not is_write and ((places[found] == at) & (programs[found] != program)).any():
                raise AccessError(f"{where} reads what another program writes")


@contextmanager
def watched() -> Iterator[Memory]:
    """Inside, interpreted kernels are looked after."""
    memory, patch = Memory(), pytest.MonkeyPatch()
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, call = builder.create_masked_load, builder.create_masked_store, executor.__call__
    address = torch.Tensor.data_ptr

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        memory.check(pointers, mask, False)
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.check(pointers, mask, True)
        return store(self, pointers, value, mask, *rest)

    def checked_call(self: Any, *args: Any, **kwargs: Any) -> None:
        memory.clear()
        call(self, *args, **kwargs)
        memory.check_programs()

    def data_ptr(self: torch.Tensor) -> int:
        memory.know(self)
        return address(self)

    patch.setattr(builder, "create_masked_load", checked_load)
    patch.setattr(builder, "create_masked_store", checked_store)
    patch.setattr(executor, "__call__", checked_call)
    patch.setattr(torch.Tensor, "data_ptr", data_ptr)
    try:
        yield memory
    finally:
        patch.undo()
