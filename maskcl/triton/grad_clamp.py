"""Protection of a whole model's gradients in one launch; see :mod:`maskcl.reference.grad_clamp`.

The launch reads a table of int64, one column a tensor: its address, those of its two sides, its shape,
and the first of its programs. Addresses are cast back with ``.to(tl.pointer_type(...))``, the way that
Triton's own grouped-GEMM tutorial passes a list of matrices: the interpreter and the compiler both take
it, a list of any length is one compiled kernel, and one small copy to the device (from pinned memory,
so nothing waits) replaces a launch a tensor. Lists are cut at MAX_TENSORS and by dtype.

Each tensor is rows of ``length`` elements that lie densely in memory; a program takes a tile of ROWS
times COLUMNS of one group. A row's bits and a column's bits are read once a tile, and a tile no row of
which has a task returns before it reads anything else.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, cdiv, check, on_device_of, power_of_2, tl, triton

ROWS, COLUMNS = 16, 128
MAX_TENSORS = 512
WRAP = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
_ELEMENT = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _tile(table_ptr, tensors, TENSORS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(the tensor's entry, rows of the tile in its group, columns of the row, the group)."""
    program = tl.program_id(0)
    index = tl.arange(0, TENSORS)
    first = tl.load(table_ptr + index, mask=index < tensors, other=0x7FFFFFFF)
    tensor = tl.sum((first <= program).to(tl.int32), 0) - 1
    entry = table_ptr + tensor
    local = program - tl.load(entry)
    height = tl.load(entry + 5 * tensors)
    length = tl.load(entry + 8 * tensors)
    blocks = tl.cdiv(length, COLUMNS)
    block, rest = local % blocks, local // blocks
    stripes = tl.cdiv(height, ROWS)
    r = (rest % stripes) * ROWS + tl.arange(0, ROWS)
    q = block * COLUMNS + tl.arange(0, COLUMNS)
    return entry, r, q, rest // stripes


@triton.jit
def _column(entry, q, tensors, INDEX: tl.constexpr):
    """The column-side unit (within its group) of elements q of a row: (q // digit) % width."""
    width = tl.load(entry + 6 * tensors)
    digit = tl.load(entry + 7 * tensors)
    column = q
    if width != tl.load(entry + 8 * tensors):
        column = ((q.to(INDEX) // digit.to(INDEX)) % width.to(INDEX)).to(tl.int64)
    return column


@triton.jit
def _popcount(words):
    x = words.to(tl.uint64)
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((x * 0x0101010101010101) >> 56).to(tl.int32)


@triton.jit
def _uniform(counter):
    """splitmix64's finaliser; the upper 24 bits make a float32 in [0, 1)."""
    x = counter
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return (x >> 40).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit(do_not_specialize=["tensors"])
def _protect_kernel(
    table_ptr,
    tensors,
    RULE: tl.constexpr,
    EXACT: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    TENSORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    entry, r, q, group = _tile(table_ptr, tensors, TENSORS, ROWS, COLUMNS)
    height = tl.load(entry + 5 * tensors)
    length = tl.load(entry + 8 * tensors)
    words = tl.load(entry + 12 * tensors)
    row_live, column_live = r < height, q < length
    row = group * height + r
    row_ptr = tl.load(entry + 2 * tensors).to(tl.pointer_type(tl.int64))
    row_ptr += row * tl.load(entry + 10 * tensors)

    row_any = tl.zeros([ROWS], tl.int64)
    for word in range(words):
        row_any |= tl.load(row_ptr + word, mask=row_live, other=0)
    if tl.sum((row_any != 0).to(tl.int32), 0) == 0:
        return

    column = _column(entry, q, tensors, INDEX)
    unit = group * tl.load(entry + 6 * tensors) + column
    column_ptr = tl.load(entry + 3 * tensors).to(tl.pointer_type(tl.int64))
    column_ptr += unit * tl.load(entry + 11 * tensors)
    COUNT: tl.constexpr = RULE == "adahat"
    if EXACT:
        protected = tl.zeros([ROWS, COLUMNS], tl.int32) != 0
        count = tl.zeros([ROWS, COLUMNS], tl.int32)
        for word in range(words):
            row_bits = tl.load(row_ptr + word, mask=row_live, other=0)[:, None]
            column_bits = tl.load(column_ptr + word, mask=column_live, other=0)[None, :]
            protected |= (row_bits & column_bits) != 0
            if COUNT:
                count += _popcount(row_bits & column_bits)
    else:
        column_any = tl.zeros([COLUMNS], tl.int64)
        row_count = tl.zeros([ROWS], tl.int32)
        column_count = tl.zeros([COLUMNS], tl.int32)
        for word in range(words):
            column_bits = tl.load(column_ptr + word, mask=column_live, other=0)
            column_any |= column_bits
            if COUNT:
                row_count += _popcount(tl.load(row_ptr + word, mask=row_live, other=0))
                column_count += _popcount(column_bits)
        protected = (row_any != 0)[:, None] & (column_any != 0)[None, :]
        count = tl.minimum(row_count[:, None], column_count[None, :])

    at = row[:, None] * tl.load(entry + 9 * tensors) + q[None, :]
    target_ptr = tl.load(entry + tensors).to(tl.pointer_type(DTYPE)) + at
    if RULE == "hat":
        value = tl.zeros([ROWS, COLUMNS], DTYPE)
    elif RULE == "restore":
        value = tl.load(tl.load(entry + 4 * tensors).to(tl.pointer_type(DTYPE)) + at, mask=protected)
    else:
        # const, adahat: a float64's bits; random: the counter of element 0.
        extra = tl.load(entry + 4 * tensors)
        if RULE == "random":
            digit = tl.load(entry + 7 * tensors)
            span = digit * tl.load(entry + 6 * tensors)
            within = q % digit + q // span * digit
            flat = row[:, None] * tl.load(entry + 13 * tensors)
            flat += (column * tl.load(entry + 14 * tensors) + within)[None, :]
            factor = _uniform(flat.to(tl.uint64) * 0x9E3779B97F4A7C15 + extra.to(tl.uint64))
        elif RULE == "adahat":
            rate = extra.to(tl.float64, bitcast=True).to(tl.float32)
            # Divided only where n > 0: r may be 0.
            factor = rate / (tl.maximum(count, 1).to(tl.float32) + rate)
        else:
            factor = extra.to(tl.float64, bitcast=True).to(tl.float32)
        value = (tl.load(target_ptr, mask=protected, other=0.0).to(tl.float32) * factor).to(DTYPE)
    tl.store(target_ptr, value, mask=protected)


@triton.jit(do_not_specialize=["tensors"])
def _soft_kernel(
    table_ptr,
    tensors,
    AGGREGATION: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    TENSORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    entry, r, q, group = _tile(table_ptr, tensors, TENSORS, ROWS, COLUMNS)
    height = tl.load(entry + 5 * tensors)
    length = tl.load(entry + 8 * tensors)
    row = group * height + r
    unit = group * tl.load(entry + 6 * tensors) + _column(entry, q, tensors, INDEX)
    sides = tl.load(entry + 12 * tensors)  # 1: rows only, 2: columns only, 3: both
    row_ptr = tl.load(entry + 2 * tensors).to(tl.pointer_type(tl.float32))
    row_ptr += row * tl.load(entry + 10 * tensors)
    a = tl.load(row_ptr, mask=r < tl.where(sides == 2, 0, height), other=0.0)[:, None]
    column_ptr = tl.load(entry + 3 * tensors).to(tl.pointer_type(tl.float32))
    column_ptr += unit * tl.load(entry + 11 * tensors)
    b = tl.load(column_ptr, mask=q < tl.where(sides == 1, 0, length), other=0.0)[None, :]
    if AGGREGATION == "min":
        both = tl.minimum(a, b)
    elif AGGREGATION == "max":
        both = tl.maximum(a, b)
    else:
        both = (a + b) * 0.5
    share = tl.where(sides == 3, both, a + b)  # the side that is not there was read as 0

    at = row[:, None] * tl.load(entry + 9 * tensors) + q[None, :]
    live = (r < height)[:, None] & (q < length)[None, :]
    grad_ptr = tl.load(entry + tensors).to(tl.pointer_type(DTYPE)) + at
    grad = tl.load(grad_ptr, mask=live, other=0.0).to(tl.float32)
    tl.store(grad_ptr, (grad * (1.0 - share)).to(DTYPE), mask=live)


@dataclass(frozen=True)
class _Rows:
    """How a tensor [O, I, *] lies in memory: rows, whose columns are the units of the other side."""

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
    """Of bits the words of a unit; of soft masks which sides are there: 1 rows, 2 columns, 3 both."""
    if row_side.dim() == 2:
        return row_side.shape[1]
    return (row_side.numel() > 0) + 2 * (column_side.numel() > 0)


def _laid_out_as(tensor: Tensor, other: Tensor) -> Tensor:
    """``other`` with the strides and the dtype of ``tensor``; itself where it has them."""
    if other.stride() == tensor.stride() and other.dtype == tensor.dtype:
        return other
    shape, stride = tensor.shape, tensor.stride()
    return torch.empty_strided(shape, stride, dtype=tensor.dtype, device=tensor.device).copy_(other)


def _bits_of(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _signed(value: int) -> int:
    """``value`` modulo 2^64 as an int64."""
    value %= WRAP
    return value - WRAP if value >= WRAP // 2 else value


@dataclass(frozen=True)
class _List:
    """A list of tensors with its sides; extras[t] is an int64 for the table, or a tensor like tensors[t]."""

    tensors: Sequence[Tensor]
    out_sides: Sequence[Tensor]
    in_sides: Sequence[Tensor]
    groups: Sequence[int]
    extras: Sequence[int] | Sequence[Tensor]


class _Table:
    """The launch's table, built entry by entry; holds what it points to until the launch is queued."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, ...]] = []
        self.alive: list[Tensor] = []
        self.copies: list[tuple[Tensor, Tensor]] = []
        self.programs = 0
        self.longest = 0

    def add(self, tensor: Tensor, row_side: Tensor, column_side: Tensor, groups: int, extra: int | Tensor) -> None:
        """Append ``tensor``; rows that do not lie densely in memory are worked on in a copy."""
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
            extra = _laid_out_as(tensor, extra)
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
        self.programs += groups * cdiv(rows.height, ROWS) * cdiv(rows.length, COLUMNS)

    def on(self, device: torch.device) -> Tensor:
        """int64 [15, tensors] on ``device``, copied there without waiting."""
        fields = list(zip(*self.entries, strict=True))
        table = torch.tensor(fields, dtype=torch.int64, pin_memory=device.type == "cuda")
        return table.to(device, non_blocking=True)


def _launch(kernel: Any, work: _List, **constants: Any) -> None:
    """Run ``kernel`` over the tensors, those of one dtype (and at most MAX_TENSORS) in one launch."""
    lists: dict[torch.dtype, list[int]] = {}
    for t, tensor in enumerate(work.tensors):
        check("grad_clamp", f"tensor {t} of the list", tensor)
        if tensor.numel():
            lists.setdefault(tensor.dtype, []).append(t)
    for dtype, indices in lists.items():
        for start in range(0, len(indices), MAX_TENSORS):
            table = _Table()
            for t in indices[start : start + MAX_TENSORS]:
                sides = work.out_sides[t], work.in_sides[t]
                table.add(work.tensors[t], *sides, work.groups[t], work.extras[t])
            first = work.tensors[indices[0]]
            with on_device_of(first):
                kernel[(table.programs,)](
                    table.on(first.device),
                    len(table.entries),
                    DTYPE=_ELEMENT[dtype],
                    INDEX=tl.int32 if table.longest + COLUMNS < 1 << 31 else tl.int64,
                    TENSORS=power_of_2(len(table.entries)),
                    ROWS=ROWS,
                    COLUMNS=COLUMNS,
                    **constants,
                    **OPTIONS,
                )
            for original, copy in table.copies:
                original.copy_(copy)


def clamp_grads_(
    grads: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
    rule: str,
    values: list[float],
    seed: int,
) -> None:
    """Scale each gradient where its weight is protected, in place; the list is one launch.

    grads[t] [O, I, *] or [O]; out_tasks[t] int64 [O, W] or [1, W]; in_tasks[t] int64 [groups I, W] or
    [1, W]. Rule hat reads the bits alone and writes 0 to protected elements alone; the other rules read
    and write protected elements alone.
    """
    extras: list[int] = [0] * len(grads)
    if rule in ("const", "adahat"):
        extras = [_bits_of(value) for value in values]
    elif rule == "random":
        extras = [_signed((t << 40) * GOLDEN + seed) for t in range(len(grads))]
    elif rule != "hat":
        raise ValueError(f"rule: found {rule!r}, wanted one of hat, const, adahat, random")
    work = _List(grads, out_tasks, in_tasks, groups, extras)
    _launch(_protect_kernel, work, RULE=rule, EXACT=exact)


def restore_protected_(
    params: list[Tensor],
    saved: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
) -> None:
    """params[t] = saved[t] where the weight is protected, elsewhere untouched; one launch."""
    work = _List(params, out_tasks, in_tasks, groups, saved)
    _launch(_protect_kernel, work, RULE="restore", EXACT=exact)


def clamp_grads_soft_(
    grads: list[Tensor],
    out_masks: list[Tensor],
    in_masks: list[Tensor],
    groups: list[int],
    aggregation: str,
) -> None:
    """grads[t] *= 1 - agg(out_masks[t][o], in_masks[t][i]), in place; the list is one launch.

    out_masks[t] float [O], [1] or [0]; in_masks[t] float [groups I], [1] or [0]. A side of 0 elements
    leaves only the other; a tensor without either is left alone.
    """
    if aggregation not in ("min", "max", "mean"):
        raise ValueError(f"aggregation: found {aggregation!r}, wanted one of min, max, mean")
    chosen = [t for t in range(len(grads)) if out_masks[t].numel() or in_masks[t].numel()]
    work = _List(
        [grads[t] for t in chosen],
        [out_masks[t].float() for t in chosen],
        [in_masks[t].float() for t in chosen],
        [groups[t] for t in chosen],
        [0] * len(chosen),
    )
    _launch(_soft_kernel, work, AGGREGATION=aggregation)
