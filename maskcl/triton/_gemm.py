"""Kernels: products with a masked weight that never lies in memory, and its gradient.

The masked weight is the left operand, which Hopper's tensor cores take from registers: a tile of W
and of its scores (or words of bits) is loaded, selected and multiplied. So the kernel computes a
transpose, out[n, m] = sum over k of (W m)[m, k] x[n, k], where m is O forward and I
(``TRANSPOSED``) for the gradient of x. Where there are few programs they split k, and the partial
sums are added in a fixed order.
"""

from maskcl.triton._compat import tl, triton
from maskcl.triton._formulas import mask_value, masked, sigmoid_slope


@triton.jit
def _tile_of(program, m_tiles, n_tiles, GROUP: tl.constexpr):
    """(m, n) of a program: GROUP tiles along m, then the next along n."""
    in_group = GROUP * n_tiles
    first = (program // in_group) * GROUP
    size = tl.minimum(m_tiles - first, GROUP)
    inside = program % in_group
    return first + inside % size, inside // size


@triton.jit
def _as_if_loaded(value, ptr, rows):
    """``value``, in the compiler's eyes from memory, which is not read: rows is never negative.

    What is computed from loads and constants alone is computed in the layout in which the tensor
    cores take it. An arange or a scalar among it would send each tile of W through shared memory
    once more.
    """
    zero = tl.zeros_like(value).to(tl.int32)
    at = ptr.to(tl.pointer_type(value.dtype)) + zero
    return tl.load(at, mask=zero + rows < 0, other=value)


@triton.jit
def _first_words(
    m0,
    k_first,
    columns,
    TILE_M: tl.constexpr,
    TILE_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Where the words of weights [m, k_first ..] are, counted in words or, not ALIGNED, in bits."""
    m = m0 + tl.arange(0, TILE_M)
    k = k_first + tl.arange(0, TILE_K)
    if ALIGNED and TRANSPOSED:
        word = m0 // 32 + tl.arange(0, TILE_M // 32)
        at = k[None, :] * (columns // 32) + word[:, None]
    elif ALIGNED:
        word = k_first // 32 + tl.arange(0, TILE_K // 32)
        at = m[:, None] * (columns // 32) + word[None, :]
    elif TRANSPOSED:
        at = k[None, :] * columns + m[:, None]
    else:
        at = m[:, None] * columns + k[None, :]
    return at


@triton.jit
def _bits_of(
    words_ptr,
    at,
    bit,
    live,
    TILE_M: tl.constexpr,
    TILE_K: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ALIGNED: tl.constexpr,
):
    """Not 0 where the weight's bit is set, int32 [TILE_M, TILE_K]; ALIGNED: 32 share a load."""
    if ALIGNED:
        word = tl.load(words_ptr + at, mask=live, other=0)
        if TRANSPOSED:
            found = word[:, None, :] & bit[None, :, None]
        else:
            found = word[:, :, None] & bit[None, None, :]
        found = tl.reshape(found, [TILE_M, TILE_K])
    else:
        word = tl.load(words_ptr + (at >> 5), mask=live, other=0)
        found = (word >> (at & 31).to(tl.int32)) & 1
    return found


@triton.jit(do_not_specialize=["rows", "tiles_each"])
def _masked_product_kernel(
    x_ptr,
    weight_ptr,
    source_ptr,
    kth_ptr,
    bias_ptr,
    out_ptr,
    rows,
    m_end,
    k_end,
    columns,
    plane,
    tiles_each,
    threshold,
    scale,
    LEVELS: tl.constexpr,
    INCLUSIVE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ALIGNED: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """out[split, n, m] over tiles_each tiles of k.

    LEVELS "bits" and "bits2" (ternary): the source is words. ``ALIGNED``: every row of W begins
    with a word. ``EVEN``: the tiles of k are all full.
    """
    BITS: tl.constexpr = LEVELS == "bits" or LEVELS == "bits2"
    m_tile, n_tile = _tile_of(
        tl.program_id(0), tl.cdiv(m_end, TILE_M), tl.cdiv(rows, TILE_N), GROUP
    )
    split = tl.program_id(1).to(tl.int64)
    k_first = split * tiles_each * TILE_K
    m0 = m_tile.to(tl.int64) * TILE_M
    m = m0 + tl.arange(0, TILE_M)
    n = n_tile.to(tl.int64) * TILE_N + tl.arange(0, TILE_N)
    k = tl.arange(0, TILE_K)
    m_live, n_live = (m < m_end)[:, None], (n < rows)[None, :]
    x_tile = x_ptr + k_first + n[None, :] * k_end + k[:, None]
    step = tl.full([], TILE_K, tl.int64)  # elements from a tile of W to the next
    w_at = k_first + m[:, None] * columns + k[None, :]
    if TRANSPOSED:
        step = step * columns
        w_at = (k_first + k)[None, :] * columns + m[:, None]
    w_tile = weight_ptr + w_at
    if BITS:
        bit = _as_if_loaded(tl.full([32], 1, tl.int32) << tl.arange(0, 32), source_ptr, rows)
        bits_at = _first_words(m0, k_first, columns, TILE_M, TILE_K, TRANSPOSED, ALIGNED)
        bits_step = step // 32 if ALIGNED else step
        word = m0 // 32 + tl.arange(0, TILE_M // 32)
        bits_live = (word * 32 < m_end)[:, None] if ALIGNED and TRANSPOSED else m_live
    else:
        s_tile = source_ptr + w_at
        bound = tl.zeros([TILE_M], tl.float32) + threshold
        if LEVELS == "topk":
            bound = tl.zeros([TILE_M], tl.float32) + tl.load(kth_ptr).to(tl.float32)
        bound = _as_if_loaded(bound, source_ptr, rows)[:, None]
        factor = _as_if_loaded(tl.zeros([TILE_M], tl.float32) + scale, source_ptr, rows)[:, None]

    acc = tl.zeros([TILE_M, TILE_N], tl.float32)
    last = tl.minimum(k_first + tiles_each * TILE_K, k_end)
    for k0 in range(k_first, last, TILE_K):
        w_live, x_live = m_live, n_live
        if not EVEN:
            k_live = k < k_end - k0
            w_live, x_live = m_live & k_live[None, :], n_live & k_live[:, None]
        w = tl.load(w_tile, mask=w_live, other=0.0)
        x = tl.load(x_tile, mask=x_live, other=0.0)
        if BITS:
            live = bits_live
            if not EVEN and not ALIGNED:
                live = w_live
            elif not EVEN and TRANSPOSED:
                live = bits_live & (k < k_end - k0)[None, :]
            elif not EVEN:
                live = bits_live & (tl.arange(0, TILE_K // 32) * 32 < k_end - k0)[None, :]
            on = _bits_of(source_ptr, bits_at, bit, live, TILE_M, TILE_K, TRANSPOSED, ALIGNED)
            negative = on
            if LEVELS == "bits2":
                negative = _bits_of(
                    source_ptr + plane, bits_at, bit, live, TILE_M, TILE_K, TRANSPOSED, ALIGNED
                )
            chosen = tl.where(on != 0, 1.0, 0.0)
            if LEVELS == "bits2":
                chosen = tl.where(negative != 0, -chosen, chosen)
            bits_at += bits_step
        else:
            s = tl.load(s_tile, mask=w_live, other=0.0).to(tl.float32)
            chosen = mask_value(s, bound, bound, factor, LEVELS, INCLUSIVE)
            s_tile += step
        w = masked(w, chosen, LEVELS == "soft")
        if WIDE:
            w, x = w.to(tl.float32), x.to(tl.float32)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        w_tile += step
        x_tile += TILE_K
    if HAS_BIAS:
        acc += tl.load(bias_ptr + m, mask=m < m_end, other=0.0).to(tl.float32)[:, None]
    into = (split * rows + n)[None, :] * m_end + m[:, None]
    tl.store(out_ptr + into, acc.to(out_ptr.dtype.element_ty), mask=m_live & n_live)


@triton.jit(do_not_specialize=["rows", "tiles_each"])
def _weight_grad_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    scores_ptr,
    kth_ptr,
    dweight_ptr,
    dscores_ptr,
    parts_ptr,
    rows,
    m_end,
    n_end,
    tiles_each,
    threshold,
    scale,
    LEVELS: tl.constexpr,
    INCLUSIVE: tl.constexpr,
    WANT_WEIGHT: tl.constexpr,
    WANT_SCORES: tl.constexpr,
    PARTIAL: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """G = grad^T x [m, n], and G W and G m from the accumulator; ``PARTIAL``: parts of G alone."""
    m_tile, n_tile = _tile_of(
        tl.program_id(0), tl.cdiv(m_end, TILE_M), tl.cdiv(n_end, TILE_N), GROUP
    )
    split = tl.program_id(1).to(tl.int64)
    k_first = split * tiles_each * TILE_K
    m = (m_tile * TILE_M).to(tl.int64) + tl.arange(0, TILE_M)
    n = (n_tile * TILE_N).to(tl.int64) + tl.arange(0, TILE_N)
    acc = tl.zeros([TILE_M, TILE_N], tl.float32)
    for k0 in range(k_first, tl.minimum(k_first + tiles_each * TILE_K, rows), TILE_K):
        k = k0 + tl.arange(0, TILE_K).to(tl.int64)
        g_live = (m < m_end)[:, None] & (k < rows)[None, :]
        g = tl.load(grad_ptr + k[None, :] * m_end + m[:, None], mask=g_live, other=0.0)
        x_live = (k < rows)[:, None] & (n < n_end)[None, :]
        x = tl.load(x_ptr + k[:, None] * n_end + n[None, :], mask=x_live, other=0.0)
        if WIDE:
            g, x = g.to(tl.float32), x.to(tl.float32)
        acc = tl.dot(g, x, acc, input_precision="ieee")
    live = (m < m_end)[:, None] & (n < n_end)[None, :]
    at = m[:, None] * n_end + n[None, :]
    if PARTIAL:
        tl.store(parts_ptr + split * m_end * n_end + at, acc, mask=live)
    else:
        if WANT_WEIGHT or LEVELS == "soft":
            s = tl.load(scores_ptr + at, mask=live, other=0.0).to(tl.float32)
        if WANT_WEIGHT:
            kth = 0.0
            if LEVELS == "topk":
                kth = tl.load(kth_ptr).to(tl.float32)
            m_value = mask_value(s, kth, threshold, scale, LEVELS, INCLUSIVE)
            dw = masked(acc, m_value, LEVELS == "soft")
            tl.store(dweight_ptr + at, dw.to(dweight_ptr.dtype.element_ty), mask=live)
        if WANT_SCORES:
            ds = acc * tl.load(weight_ptr + at, mask=live, other=0.0).to(tl.float32)
            if LEVELS == "soft":
                ds *= scale * sigmoid_slope(scale * (s - threshold))
            tl.store(dscores_ptr + at, ds.to(dscores_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["splits"])
def _sum_splits_kernel(
    parts_ptr, bias_ptr, out_ptr, splits, count, width, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    total = tl.zeros([BLOCK], tl.float32)
    part = parts_ptr + at
    for _ in range(splits):
        total += tl.load(part, mask=live, other=0.0)
        part += count
    if HAS_BIAS:
        total += tl.load(bias_ptr + at % width, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=live)
