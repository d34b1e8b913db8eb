"""A list of tensors [O, I, *] as one launch: how each lies in memory, and the table that says so.

The table is int64, one column a tensor: its address, those of its two sides, its shape, and the
first of its programs. Kernels cast addresses back with ``.to(tl.pointer_type(...))``, the way that
Triton's own grouped-GEMM tutorial passes a list of matrices: the interpreter and the compiler both
take it, a list of any length is one compiled kernel, and one small copy to the device (from pinned
memory, so nothing waits) replaces a launch a tensor. Lists are cut at MAX_TENSORS and by dtype.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, cdiv, check, on_device_of, power_of_2, tl, triton

ROWS, COLUMNS = 16, 128  # a program's tile
MAX_TENSORS = 512
# Tables that CUDA graphs copy to the device at each replay: their memory may not be another's.
_captured: list[Tensor] = []
ELEMENT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def entry_of(table_ptr, tensors, TENSORS: tl.constexpr):
    """(the column of the tensor that this program works on, its number among that one's)."""
    program = tl.program_id(0)
    index = tl.arange(0, TENSORS)
    first = tl.load(table_ptr + index, mask=index < tensors, other=0x7FFFFFFF)
    tensor = tl.sum((first <= program).to(tl.int32), 0) - 1
    entry = table_ptr + tensor
    return entry, program - tl.load(entry)


def on_device(entries: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """The table of these columns, int64 [fields, columns], copied to ``device`` without waiting."""
    fields = list(zip(*entries, strict=True))
    on_gpu = device.type == "cuda"
    table = torch.tensor(fields, dtype=torch.int64, pin_memory=on_gpu)
    if on_gpu and torch.cuda.is_current_stream_capturing():
        _captured.append(table)
    return table.to(device, non_blocking=True)


@dataclass(frozen=True)
class _Rows:
    """How a tensor [O, I, *] lies in memory: rows, their columns the units of the other side."""

    swapped: bool  # rows are the in side's units
    height: int  # rows in a group
    width: int  # columns in a group
    digit: int  # element q of a row belongs to column (q // digit) % width
    length: int  # elements in a row
    stride: int  # between rows
    row_step: int  # in the logical flat index
    column_step: int


def _packed(tensor: Tensor, unit: int) -> bool:
    """Whether dimensions 2 and on are contiguous among themselves, ``unit`` elements apart."""
    for dim in range(tensor.dim() - 1, 1, -1):
        if tensor.shape[dim] != 1 and tensor.stride(dim) != unit:
            return False
        unit *= tensor.shape[dim]
    return True


def _rows(tensor: Tensor, groups: int) -> _Rows | None:
    """The rows of a non-empty ``tensor``; None where its memory must be put in order first."""
    high = tensor.shape[0]
    if tensor.dim() == 1:  # one row, whose side is the in side: a bias needs no row a unit
        plain = high == 1 or tensor.stride(0) == 1
        return _Rows(True, 1, high, 1, high, 0, 0, 1) if plain else None
    wide = tensor.shape[1]
    kernel = tensor.numel() // (high * wide)
    step, between = tensor.stride(0), tensor.stride(1)
    digit = None
    if _packed(tensor, 1) and (wide == 1 or between == kernel):
        digit = kernel
    elif _packed(tensor, wide) and between == 1:  # channels_last
        digit = 1
    length = wide * kernel
    if digit is not None and (high == 1 or step >= length):
        return _Rows(False, high // groups, wide, digit, length, step, length, kernel)
    transposed = tensor.dim() == 2 and groups == 1 and (high == 1 or step == 1)
    if transposed and (wide == 1 or between >= high):
        return _Rows(True, wide, high, 1, high, between, 1, wide)
    return None


def _stride(side: Tensor) -> int:
    """Elements between the units of a contiguous side; 0 for the one row that stands for all."""
    return 0 if side.shape[0] == 1 else side.stride(0)


def _words(row_side: Tensor, column_side: Tensor) -> int:
    """Of bits the words of a unit; of soft masks the sides there: 1 rows, 2 columns, 3 both."""
    if row_side.dim() == 2:
        return row_side.shape[1]
    return (row_side.numel() > 0) + 2 * (column_side.numel() > 0)


def laid_out_as(tensor: Tensor, other: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``other`` with the strides and dtype (or ``dtype``) of ``tensor``; itself where it is so."""
    dtype = tensor.dtype if dtype is None else dtype
    if other.stride() == tensor.stride() and other.dtype == dtype:
        return other
    shape, stride = tensor.shape, tensor.stride()
    return torch.empty_strided(shape, stride, dtype=dtype, device=tensor.device).copy_(other)


@dataclass(frozen=True)
class TensorList:
    """Tensors with their sides; extras[t] is an int64 for the table or a tensor like tensors[t]."""

    tensors: Sequence[Tensor]
    out_sides: Sequence[Tensor]
    in_sides: Sequence[Tensor]
    groups: Sequence[int]
    extras: Sequence[int] | Sequence[Tensor]


class Table:
    """The launch's table, built entry by entry; holds what it points to until the launch."""

    def __init__(self, tile_rows: int = ROWS) -> None:
        self.tile_rows = tile_rows
        self.entries: list[tuple[int, ...]] = []
        self.alive: list[Tensor] = []
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.programs = 0
        self.longest = 0

    def add(
        self,
        tensor: Tensor,
        row_side: Tensor,
        column_side: Tensor,
        groups: int,
        extra: int | Tensor,
    ) -> Tensor:
        """Append ``tensor``; rows that do not lie densely in memory are worked on in a copy.

        Returns:
            What is worked on, which ``alive`` and ``copies`` hold.
        """
        rows = _rows(tensor, groups)
        if rows is None:
            original, tensor = tensor, tensor.contiguous()
            self.copies.append((original, tensor))
            rows = _rows(tensor, groups)
            assert rows is not None, "a contiguous tensor always has rows"
        if rows.swapped:
            row_side, column_side, groups = column_side, row_side, 1
        row_side, column_side = row_side.contiguous(), column_side.contiguous()
        if isinstance(extra, Tensor):
            extra = laid_out_as(tensor, extra)
            self.alive.append(extra)
            extra = extra.data_ptr()
        self.alive += (tensor, row_side, column_side)
        self.entries.append(
            (
                self.programs,
                tensor.data_ptr(),
                row_side.data_ptr(),
                column_side.data_ptr(),
                extra,
                rows.height,
                rows.width,
                rows.digit,
                rows.length,
                rows.stride,
                _stride(row_side),
                _stride(column_side),
                _words(row_side, column_side),
                rows.row_step,
                rows.column_step,
            )
        )
        self.longest = max(self.longest, rows.length)
        self.programs += groups * cdiv(rows.height, self.tile_rows) * cdiv(rows.length, COLUMNS)
        return tensor

    def on(self, device: torch.device) -> Tensor:
        """int64 [15 or more, tensors] on ``device``."""
        return on_device(self.entries, device)


def launch(kernel: Any, work: TensorList, **constants: Any) -> None:
    """Run ``kernel`` over the tensors, one launch for those of one dtype (MAX_TENSORS at most)."""
    lists: dict[torch.dtype, list[int]] = {}
    for t, tensor in enumerate(work.tensors):
        check("grad_clamp", f"tensor {t} of the list", tensor)
        if tensor.numel():
            lists.setdefault(tensor.dtype, []).append(t)
    for dtype, indices in lists.items():
        for start in range(0, len(indices), MAX_TENSORS):
            table = Table()
            for t in indices[start : start + MAX_TENSORS]:
                sides = work.out_sides[t], work.in_sides[t]
                table.add(work.tensors[t], *sides, work.groups[t], work.extras[t])
            first = work.tensors[indices[0]]
            with on_device_of(first):
                kernel[(table.programs,)](
                    table.on(first.device),
                    len(table.entries),
                    DTYPE=ELEMENT[dtype],
                    INDEX=tl.int32 if table.longest + COLUMNS < 1 << 31 else tl.int64,
                    TENSORS=power_of_2(len(table.entries)),
                    ROWS=ROWS,
                    COLUMNS=COLUMNS,
                    **constants,
                    **OPTIONS,
                )
            for original, copy in table.copies:
                original.copy_(copy)
