"""Kernels of one optimizer step under protection; formulas as in :mod:`maskcl.reference.update`.

Protected elements are masked out of every load and store. What torch's fused kernels contract is a
fused multiply-add here, and nothing else is.
"""

from maskcl.triton._compat import tl, triton
from maskcl.triton.grad_clamp import column_of, index_of, splitmix, tile_of


@triton.jit
def _free(entry, tensors, r, q, group, EXACT: tl.constexpr, INDEX: tl.constexpr):
    """(which elements of the tile are not protected, which are there at all, their offsets)."""
    height = tl.load(entry + 5 * tensors)
    length = tl.load(entry + 8 * tensors)
    words = tl.load(entry + 12 * tensors)
    row_live, column_live = r < height, q < length
    row = group * height + r
    live = row_live[:, None] & column_live[None, :]
    at = row[:, None] * tl.load(entry + 9 * tensors) + q[None, :]
    row_ptr = tl.load(entry + 2 * tensors).to(tl.pointer_type(tl.int64))
    row_ptr += row * tl.load(entry + 10 * tensors)
    row_any = row * 0
    for word in range(words):
        row_any |= tl.load(row_ptr + word, mask=row_live, other=0)

    taken = (row[:, None] + q[None, :]) < 0
    if tl.sum((row_any != 0).to(tl.int32), 0) != 0:
        unit = group * tl.load(entry + 6 * tensors) + column_of(entry, q, tensors, INDEX)
        column_ptr = tl.load(entry + 3 * tensors).to(tl.pointer_type(tl.int64))
        column_ptr += unit * tl.load(entry + 11 * tensors)
        for word in range(words):
            column_bits = tl.load(column_ptr + word, mask=column_live, other=0)[None, :]
            if EXACT:
                row_bits = tl.load(row_ptr + word, mask=row_live, other=0)[:, None]
                taken |= (row_bits & column_bits) != 0
            else:
                taken |= (row_any != 0)[:, None] & (column_bits != 0)
    return live & (taken == 0), live, at


@triton.jit
def _number(entry, field: tl.constexpr, tensors):
    """A float64 of the table."""
    return tl.load(entry + field * tensors).to(tl.float64, bitcast=True)


@triton.jit
def _gradient(
    grad_ptr, at, free, scale_ptr, norm_ptr, max_norm, MAXIMIZE: tl.constexpr, DTYPE: tl.constexpr
):
    """The unscaled, clipped gradients in float32."""
    grad = tl.load(grad_ptr.to(tl.pointer_type(DTYPE)) + at, mask=free, other=0.0).to(tl.float32)
    if scale_ptr is not None:
        grad = tl.div_rn(grad, tl.load(scale_ptr).to(tl.float32) + tl.zeros_like(grad))
    if norm_ptr is not None:
        norm = tl.load(norm_ptr).to(tl.float32)
        factor = 1.0 / (norm + 1e-6) * max_norm
        grad = grad * tl.where(factor > 1.0, 1.0, factor)
    if MAXIMIZE:
        grad = -grad
    return grad


@triton.jit
def _bounded(param, bound):
    """NaN stays NaN."""
    return tl.where(param > bound, bound, tl.where(param < -bound, -bound, param))


@triton.jit
def _random_bits(entry, tensors, r, q, group, draw_ptr, seed, INDEX: tl.constexpr):
    """64 bits for each element of the tile."""
    key = splitmix(
        tl.load(draw_ptr).to(tl.int64).to(tl.uint64) * 0x9E3779B97F4A7C15 + seed.to(tl.uint64)
    )
    row = group * tl.load(entry + 5 * tensors) + r
    index = index_of(entry, row, column_of(entry, q, tensors, INDEX), q, tensors)
    counter = (index + tl.load(entry + 21 * tensors)).to(tl.uint64)
    return splitmix(counter * 0x9E3779B97F4A7C15 + key)


@triton.jit
def _rounded(x, bits, shift: tl.constexpr, DTYPE: tl.constexpr):
    """bfloat16 by 16 of the bits, which carry into what stays; all else to nearest."""
    if bits is None or tl.bfloat16 != DTYPE:
        result = x.to(DTYPE)
    else:
        whole = x.to(tl.uint32, bitcast=True)
        moved = (whole + ((bits >> shift).to(tl.uint32) & 0xFFFF)) & 0xFFFF0000
        is_finite = (whole & 0x7F800000) != 0x7F800000
        result = tl.where(is_finite, moved.to(tl.float32, bitcast=True), x).to(DTYPE)
    return result


@triton.jit
def skips(found_inf_ptr):
    found = False
    if found_inf_ptr is not None:
        found = tl.load(found_inf_ptr).to(tl.float32) != 0.0
    return found


@triton.jit(do_not_specialize=["tensors", "seed", "momentum", "undampened", "max_norm"])
def sgd_kernel(
    table_ptr,
    tensors,
    rate_ptr,
    scale_ptr,
    found_inf_ptr,
    norm_ptr,
    draw_ptr,
    seed,
    max_norm,
    momentum,
    undampened,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    FIRST: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    EXACT: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    INDEX: tl.constexpr,
    TENSORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    if skips(found_inf_ptr):
        return
    entry, r, q, group = tile_of(table_ptr, tensors, TENSORS, ROWS, COLUMNS)
    free, live, at = _free(entry, tensors, r, q, group, EXACT, INDEX)
    bits = None
    if draw_ptr is not None and tl.bfloat16 == DTYPE:
        bits = _random_bits(entry, tensors, r, q, group, draw_ptr, seed, INDEX)
    param_ptr = tl.load(entry + tensors).to(tl.pointer_type(DTYPE)) + at
    param = tl.load(param_ptr, mask=free, other=0.0).to(tl.float32)
    grad_ptr = tl.load(entry + 15 * tensors)
    step = _gradient(grad_ptr, at, free, scale_ptr, norm_ptr, max_norm, MAXIMIZE, DTYPE)
    decay = _number(entry, 19, tensors).to(tl.float32)
    step = tl.where(decay != 0.0, tl.fma(param, decay + tl.zeros_like(param), step), step)
    if MOMENTUM:
        buffer_ptr = tl.load(entry + 16 * tensors).to(tl.pointer_type(STATE)) + at
        factor = tl.zeros_like(param) + momentum
        if FIRST:
            moved = step
            tl.store(buffer_ptr, _rounded(tl.where(free, moved, 0.0), bits, 32, STATE), mask=live)
        else:
            moved = tl.load(buffer_ptr, mask=free, other=0.0).to(tl.float32)
            moved = tl.fma(step, tl.zeros_like(param) + undampened, moved * factor)
            tl.store(buffer_ptr, _rounded(moved, bits, 32, STATE), mask=free)
        step = tl.fma(moved, factor, step) if NESTEROV else moved
    rate = _number(entry, 18, tensors)
    if rate_ptr is not None:
        rate *= tl.load(rate_ptr).to(tl.float64)
    param = tl.fma(step, tl.zeros_like(param) - rate.to(tl.float32), param)
    param = _bounded(param, _number(entry, 20, tensors).to(tl.float32))
    tl.store(param_ptr, _rounded(param, bits, 48, DTYPE), mask=free)


@triton.jit(do_not_specialize=["tensors", "seed", "counted", "weight1", "beta2", "weight2", "eps"])
def adam_kernel(
    table_ptr,
    tensors,
    known_ptr,
    counted,
    scale_ptr,
    found_inf_ptr,
    norm_ptr,
    draw_ptr,
    seed,
    max_norm,
    weight1,
    beta2,
    weight2,
    eps,
    SMALL: tl.constexpr,
    DECOUPLED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    EXACT: tl.constexpr,
    DTYPE: tl.constexpr,
    STATE: tl.constexpr,
    INDEX: tl.constexpr,
    TENSORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    if skips(found_inf_ptr):
        return
    entry, r, q, group = tile_of(table_ptr, tensors, TENSORS, ROWS, COLUMNS)
    free, _, at = _free(entry, tensors, r, q, group, EXACT, INDEX)
    known_ptr += tl.load(entry + 18 * tensors)
    size = tl.load(known_ptr).to(tl.float32)
    root = tl.load(known_ptr + counted).to(tl.float32)
    kept = tl.load(known_ptr + 2 * counted).to(tl.float32)
    decay = _number(entry, 19, tensors).to(tl.float32)

    bits = None
    if draw_ptr is not None and tl.bfloat16 == DTYPE:
        bits = _random_bits(entry, tensors, r, q, group, draw_ptr, seed, INDEX)
    param_ptr = tl.load(entry + tensors).to(tl.pointer_type(DTYPE)) + at
    param = tl.load(param_ptr, mask=free, other=0.0).to(tl.float32)
    grad_ptr = tl.load(entry + 15 * tensors)
    grad = _gradient(grad_ptr, at, free, scale_ptr, norm_ptr, max_norm, MAXIMIZE, DTYPE)
    zeros = tl.zeros_like(param)
    if DECOUPLED:
        param = param * kept
    else:
        grad = tl.where(decay != 0.0, tl.fma(param, decay + zeros, grad), grad)
    first_ptr = tl.load(entry + 16 * tensors).to(tl.pointer_type(STATE)) + at
    second_ptr = tl.load(entry + 17 * tensors).to(tl.pointer_type(STATE)) + at
    first = tl.load(first_ptr, mask=free, other=0.0).to(tl.float32)
    second = tl.load(second_ptr, mask=free, other=0.0).to(tl.float32)
    if SMALL:  # as torch.lerp has it
        first = tl.fma(zeros + weight1, grad - first, first)
    else:
        first = tl.fma(zeros + (weight1 - 1.0), grad - first, grad)
    second = tl.fma(weight2 * grad, grad, second * beta2)
    denominator = tl.div_rn(tl.sqrt_rn(second), root + zeros) + eps
    param = param + tl.div_rn(-size * first, denominator)
    param = _bounded(param, _number(entry, 20, tensors).to(tl.float32))
    tl.store(param_ptr, _rounded(param, bits, 48, DTYPE), mask=free)
    tl.store(first_ptr, _rounded(first, bits, 32, STATE), mask=free)
    tl.store(second_ptr, _rounded(second, bits, 16, STATE), mask=free)


@triton.jit(do_not_specialize=["tensors"])
def square_kernel(
    table_ptr,
    tensors,
    parts_ptr,
    scale_ptr,
    EXACT: tl.constexpr,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    TENSORS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    entry, r, q, group = tile_of(table_ptr, tensors, TENSORS, ROWS, COLUMNS)
    free, _, at = _free(entry, tensors, r, q, group, EXACT, INDEX)
    grad_ptr = tl.load(entry + tensors)
    grad = _gradient(grad_ptr, at, free, scale_ptr, None, 0.0, False, DTYPE).to(tl.float64)
    tl.store(parts_ptr + tl.program_id(0), tl.sum(tl.sum(grad * grad, 1), 0))


@triton.jit(do_not_specialize=["count"])
def root_kernel(parts_ptr, norm_ptr, count, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(parts_ptr + at, mask=at < count, other=0.0)
    tl.store(norm_ptr, tl.sqrt(tl.sum(total, 0)).to(tl.float32))
