"""The exact k-th largest of any number of values: a radix select, eight bits of the key a pass.

A value's key is an integer of the same order. Each pass counts, among the keys that begin as the
wanted one does, how often each next byte occurs, and one program picks the byte that the k-th has.
The third pass keeps the keys that begin as wanted, and the last reads these alone. Nothing waits
for the device; counts are integers, so that their order does not matter.
"""

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, cdiv, check, on_device_of, tl, triton

BLOCK = 2048
PARTS = 512  # programs that count, at most
ROWS = 16  # of counts added at a time
# A program has room for one key in so many of its values: few share 16 bits of it. One with more
# reads its values again.
VALUES_PER_KEY = 16


@triton.jit
def _count_kernel(
    values_ptr,
    state_ptr,
    counts_ptr,
    keys_ptr,
    kept_ptr,
    count,
    room,
    MAGNITUDE: tl.constexpr,
    SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """counts[program, b]: keys with byte b at SHIFT, of those with the higher bytes state[0]."""
    program = tl.program_id(0).to(tl.int64)
    first = program * BLOCK
    own_ptr = keys_ptr + program * room
    prefix = tl.load(state_ptr)
    found = tl.zeros([256], tl.int32)
    held = tl.zeros([], tl.int64)
    if SHIFT == 0:
        kept = tl.load(kept_ptr + program)
        for start in range(0, tl.where(kept <= room, kept, 0), BLOCK):
            at = start + tl.arange(0, BLOCK)
            key = tl.load(own_ptr + at, mask=at < kept, other=0).to(tl.int64) & 0xFFFFFFFF
            chosen = (at < kept) & ((key >> 8) == prefix)
            found += tl.histogram((key & 255).to(tl.int32), 256, mask=chosen)
        first = tl.where(kept <= room, count, first)
    for start in range(first, count, tl.num_programs(0).to(tl.int64) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        live = at < count
        v = tl.load(values_ptr + at, mask=live, other=0.0).to(tl.float32)
        v = tl.abs(v) if MAGNITUDE else tl.where(v == 0, 0.0, v)  # -0 equals 0
        bits = v.to(tl.uint32, bitcast=True).to(tl.int64)
        key = tl.where(bits < 0x80000000, bits + 0x80000000, 0xFFFFFFFF - bits)
        key = tl.where(v == v, key, 0xFFFFFFFF)  # NaN is the largest
        chosen = live & ((key >> (SHIFT + 8)) == prefix)
        found += tl.histogram(((key >> SHIFT) & 255).to(tl.int32), 256, mask=chosen)
        if SHIFT == 8:
            behind = held + tl.cumsum(chosen.to(tl.int32), 0)
            tl.store(own_ptr + behind - 1, key.to(tl.int32), mask=chosen & (behind <= room))
            held += tl.sum(chosen.to(tl.int32), 0)
    if SHIFT == 8:
        tl.store(kept_ptr + program, held)
    tl.store(counts_ptr + program * 256 + tl.arange(0, 256), found)


@triton.jit
def _choose_kernel(counts_ptr, state_ptr, out_ptr, parts, LAST: tl.constexpr, ROWS: tl.constexpr):
    """Append to state[0] the byte of the key that is the state[1]-th largest of those counted."""
    byte = tl.arange(0, 256)
    found = tl.zeros([ROWS, 256], tl.int64)
    for row0 in range(0, parts, ROWS):
        row = row0 + tl.arange(0, ROWS)
        at = row[:, None] * 256 + byte[None, :]
        found += tl.load(counts_ptr + at, mask=(row < parts)[:, None], other=0).to(tl.int64)
    counts = tl.sum(found, 0)
    up_to = tl.cumsum(counts, 0)
    above = tl.sum(counts, 0) - up_to  # keys with a larger byte
    k = tl.load(state_ptr + 1)
    here = (above < k) & (k <= above + counts)
    key = tl.load(state_ptr) * 256 + tl.sum(tl.where(here, byte, 0), 0)
    if LAST:
        bits = tl.where(key >= 0x80000000, key - 0x80000000, 0xFFFFFFFF - key)
        tl.store(out_ptr, bits.to(tl.uint32).to(tl.float32, bitcast=True))
    else:
        tl.store(state_ptr, key)
        tl.store(state_ptr + 1, k - tl.sum(tl.where(here, above, 0), 0))


def kth_largest(values: Tensor, k: int, magnitude: bool) -> Tensor:
    """The k-th largest of ``values`` (of their magnitudes), 0-d float32; NaN is the largest."""
    check("kth_largest", "values", values)
    out = values.new_empty((), dtype=torch.float32)
    values = values.contiguous()
    count = values.numel()
    parts = min(cdiv(count, BLOCK), PARTS)
    counts = values.new_empty((parts, 256), dtype=torch.int32)
    room = cdiv(count, parts * BLOCK) * BLOCK // VALUES_PER_KEY
    keys = values.new_empty((parts, room), dtype=torch.int32)
    kept = values.new_empty(parts, dtype=torch.int64)
    # Two fills on the device rather than a copy from the host.
    state = values.new_zeros(2, dtype=torch.int64)
    state[1].fill_(k)
    with on_device_of(values):
        for shift in (24, 16, 8, 0):
            _count_kernel[(parts,)](
                values,
                state,
                counts,
                keys,
                kept,
                count,
                room,
                MAGNITUDE=magnitude,
                SHIFT=shift,
                BLOCK=BLOCK,
                **OPTIONS,
            )
            _choose_kernel[(1,)](counts, state, out, parts, LAST=shift == 0, ROWS=ROWS, **OPTIONS)
    return out
