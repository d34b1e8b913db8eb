"""Protection of a whole model's gradients in one launch; see :mod:`maskcl.reference.grad_clamp`.

A program takes a tile of one tensor, in one group. A row's bits and a column's bits are read once a
tile, and a tile no row of which has a task returns before it reads anything else.
"""

import struct

from torch import Tensor

from maskcl.triton._compat import tl, triton
from maskcl.triton._lists import TensorList, entry_of, launch

WRAP = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15


@triton.jit
def tile_of(table_ptr, tensors, TENSORS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """(the tensor's entry, rows of the tile in its group, columns of the row, the group)."""
    entry, local = entry_of(table_ptr, tensors, TENSORS)
    height = tl.load(entry + 5 * tensors)
    length = tl.load(entry + 8 * tensors)
    blocks = tl.cdiv(length, COLUMNS)
    block, rest = local % blocks, local // blocks
    stripes = tl.cdiv(height, ROWS)
    r = (rest % stripes) * ROWS + tl.arange(0, ROWS)
    q = block * COLUMNS + tl.arange(0, COLUMNS)
    return entry, r, q, rest // stripes


@triton.jit
def column_of(entry, q, tensors, INDEX: tl.constexpr):
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
def splitmix(x):
    """splitmix64's finaliser of uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _uniform(counter):
    """The upper 24 bits make a float32 in [0, 1)."""
    return (splitmix(counter) >> 40).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08  # 2^-24


@triton.jit
def index_of(entry, row, column, q, tensors):
    """The index of the tile's elements in the order of indices; column: their in units."""
    digit = tl.load(entry + 7 * tensors)
    span = digit * tl.load(entry + 6 * tensors)
    within = q % digit + q // span * digit
    flat = row[:, None] * tl.load(entry + 13 * tensors)
    return flat + (column * tl.load(entry + 14 * tensors) + within)[None, :]


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
    entry, r, q, group = tile_of(table_ptr, tensors, TENSORS, ROWS, COLUMNS)
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

    column = column_of(entry, q, tensors, INDEX)
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
        value = tl.load(
            tl.load(entry + 4 * tensors).to(tl.pointer_type(DTYPE)) + at, mask=protected
        )
    else:
        # const, adahat: a float64's bits; random: the counter of element 0.
        extra = tl.load(entry + 4 * tensors)
        if RULE == "random":
            flat = index_of(entry, row, column, q, tensors)
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
    entry, r, q, group = tile_of(table_ptr, tensors, TENSORS, ROWS, COLUMNS)
    height = tl.load(entry + 5 * tensors)
    length = tl.load(entry + 8 * tensors)
    row = group * height + r
    unit = group * tl.load(entry + 6 * tensors) + column_of(entry, q, tensors, INDEX)
    sides = tl.load(entry + 12 * tensors)  # 1: rows only, 2: columns only, 3: both
    row_ptr = tl.load(entry + 2 * tensors).to(tl.pointer_type(tl.float32))
    row_ptr += row * tl.load(entry + 10 * tensors)
    a = tl.load(row_ptr, mask=r < tl.where(sides == 2, 0, height), other=0.0)[:, None]
    column_ptr = tl.load(entry + 3 * tensors).to(tl.pointer_type(tl.float32))
    column_ptr += unit * tl.load(entry + 11 * tensors)
    b = tl.load(column_ptr, mask=q < tl.where(sides == 1, 0, length), other=0.0)[None, :]
    if AGGREGATION == "min":
        both = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    elif AGGREGATION == "max":
        both = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    else:
        both = (a + b) * 0.5
    share = tl.where(sides == 3, both, a + b)  # the side that is not there was read as 0

    at = row[:, None] * tl.load(entry + 9 * tensors) + q[None, :]
    live = (r < height)[:, None] & (q < length)[None, :]
    grad_ptr = tl.load(entry + tensors).to(tl.pointer_type(DTYPE)) + at
    grad = tl.load(grad_ptr, mask=live, other=0.0).to(tl.float32)
    tl.store(grad_ptr, (grad * (1.0 - share)).to(DTYPE), mask=live)


def bits_of(value: float) -> int:
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _signed(value: int) -> int:
    """``value`` modulo 2^64 as an int64."""
    value %= WRAP
    return value - WRAP if value >= WRAP // 2 else value


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

    grads[t] [O, I, *] or [O]; out_tasks[t] int64 [O, W] or [1, W]; in_tasks[t] int64 [groups I, W]
    or [1, W]. Rule hat reads the bits alone and writes 0 to protected elements alone; the other
    rules read and write protected elements alone.
    """
    extras: list[int] = [0] * len(grads)
    if rule in ("const", "adahat"):
        extras = [bits_of(value) for value in values]
    elif rule == "random":
        extras = [_signed((t << 40) * GOLDEN + seed) for t in range(len(grads))]
    elif rule != "hat":
        raise ValueError(f"rule: found {rule!r}, wanted one of hat, const, adahat, random")
    work = TensorList(grads, out_tasks, in_tasks, groups, extras)
    launch(_protect_kernel, work, RULE=rule, EXACT=exact)


def restore_protected_(
    params: list[Tensor],
    saved: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
) -> None:
    """params[t] = saved[t] where the weight is protected, elsewhere untouched; one launch."""
    work = TensorList(params, out_tasks, in_tasks, groups, saved)
    launch(_protect_kernel, work, RULE="restore", EXACT=exact)


def clamp_grads_soft_(
    grads: list[Tensor],
    out_masks: list[Tensor],
    in_masks: list[Tensor],
    groups: list[int],
    aggregation: str,
) -> None:
    """grads[t] *= 1 - agg(out_masks[t][o], in_masks[t][i]), in place; the list is one launch.

    out_masks[t] float [O], [1] or [0]; in_masks[t] float [groups I], [1] or [0]. A side of 0
    elements leaves only the other; a tensor without either is left alone.
    """
    if aggregation not in ("min", "max", "mean"):
        raise ValueError(f"aggregation: found {aggregation!r}, wanted one of min, max, mean")
    chosen = [t for t in range(len(grads)) if out_masks[t].numel() or in_masks[t].numel()]
    work = TensorList(
        [grads[t] for t in chosen],
        [out_masks[t].float() for t in chosen],
        [in_masks[t].float() for t in chosen],
        [groups[t] for t in chosen],
        [0] * len(chosen),
    )
    launch(_soft_kernel, work, AGGREGATION=aggregation)
