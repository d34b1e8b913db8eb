"""Sum over samples of |dF/dW| of a linear layer: products whose sizes are taken on the way.

Without positions a sample's gradient is an outer product, so that the sum is |grad|^T |x|: the
sizes are taken of the operands, and one product is all. With positions a program keeps its tile of
one sample's gradient in registers, and adds the sizes to those of the samples before. Neither a
sample's gradient nor the operands' sizes ever lie in memory. Any strides are taken as they are: of
an unfolded convolution the positions lie side by side, not the channels.
"""

import torch
from torch import Tensor

from maskcl.triton._compat import cdiv, check, on_device_of, power_of_2, tl, triton
from maskcl.triton._formulas import size
from maskcl.triton._gemm import _tile_of
from maskcl.triton._products import (
    GROUP,
    LARGE_SHARED,
    Tiles,
    _options,
    _splits,
    _staged,
    _sum_splits,
    _wide,
    shared_bytes,
)


@triton.jit(do_not_specialize=["steps", "steps_each"])
def _importance_kernel(
    g_ptr,
    x_ptr,
    out_ptr,
    positions,
    m_end,
    n_end,
    g_sample,
    g_position,
    g_unit,
    x_sample,
    x_position,
    x_unit,
    out_m,
    out_n,
    out_split,
    steps,
    steps_each,
    weight,
    OUTER: tl.constexpr,
    SQUARE: tl.constexpr,
    PARTIAL: tl.constexpr,
    WIDE: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """out[m, n] += weight sum over samples of the size of sum over positions g[m] x[n].

    A step is a tile of positions of one sample. ``OUTER``: the positions are the samples, whose
    sizes multiply. ``PARTIAL``: out[split, m, n] is written, the sum over steps_each steps.
    """
    m_tile, n_tile = _tile_of(
        tl.program_id(0), tl.cdiv(m_end, TILE_M), tl.cdiv(n_end, TILE_N), GROUP
    )
    m = m_tile.to(tl.int64) * TILE_M + tl.arange(0, TILE_M)
    n = n_tile.to(tl.int64) * TILE_N + tl.arange(0, TILE_N)
    k = tl.arange(0, TILE_K).to(tl.int64)
    m_live, n_live = (m < m_end)[:, None], (n < n_end)[None, :]
    g_tile = g_ptr + m[:, None] * g_unit + k[None, :] * g_position
    x_tile = x_ptr + n[None, :] * x_unit + k[:, None] * x_position
    each = tl.cdiv(positions, TILE_K)  # steps of a sample
    split = tl.program_id(1).to(tl.int64)
    start = split * steps_each
    acc = tl.zeros([TILE_M, TILE_N], tl.float32)
    total = tl.zeros([TILE_M, TILE_N], tl.float32)
    for step in range(start, tl.minimum(start + steps_each, steps)):
        sample = 0 if OUTER else (step // each).to(tl.int64)
        inside = step if OUTER else step % each
        first = inside.to(tl.int64) * TILE_K
        k_live = k < positions - first
        g_at = g_tile + (sample * g_sample + first * g_position)
        g = tl.load(g_at, mask=m_live & k_live[None, :], other=0.0)
        x_at = x_tile + (sample * x_sample + first * x_position)
        x = tl.load(x_at, mask=k_live[:, None] & n_live, other=0.0)
        if WIDE:
            g, x = g.to(tl.float32), x.to(tl.float32)
        if OUTER:
            g, x = size(g, SQUARE), size(x, SQUARE)
        acc = tl.dot(g, x, acc, input_precision="ieee")
        if not OUTER:  # noqa: SIM102 (decided when compiled; the inner one when run)
            if inside == each - 1:
                total += size(acc, SQUARE)
                acc = tl.zeros([TILE_M, TILE_N], tl.float32)
    if OUTER:
        total = acc
    live = m_live & n_live
    into = out_ptr + m[:, None] * out_m + n[None, :] * out_n
    if PARTIAL:
        tl.store(into + split * out_split, total, mask=live)
    else:
        tl.store(into, tl.load(into, mask=live, other=0.0) + weight * total, mask=live)


def importance_tiles(element: int, positions: int | None, regular: bool, shared: int) -> Tiles:
    """Tiles by the bytes of an element; ``positions``: of a sample, None where each is one."""
    if element == 4:  # no tensor cores: products of float32 are exact to float32
        # The sum over samples takes registers of its own.
        m, n, k, warps = (64, 32, 32 if positions is None else 16, 4)
    elif not regular:
        m, n, k, warps = (64, 64, 32, 8)
    else:
        m, n, k, warps = (128, 128, 64 if shared >= LARGE_SHARED else 32, 8)
    if positions is not None:  # a tile of positions is of one sample
        n, k = min(n, 64), max(16, min(k, power_of_2(positions)))
    return _staged(m, n, k, warps, (m + n) * k * element, shared)


def _regular(tensor: Tensor) -> bool:
    """Whether the compiler sees that rows are aligned for wide loads."""
    stride = tensor.stride()
    return 1 in stride and all(step == 1 or step % 16 == 0 for step in stride)


def linear_importance_(
    importance: Tensor, x: Tensor, grad_out: Tensor, weight: float, square: bool
) -> None:
    """importance[O, I] += weight sum_n |sum_p grad_out[n, p, O] x[n, p, I]|, in place.

    x [N, I] and grad_out [N, O], or [N, P, I] and [N, P, O], of any strides. Sums are float32.
    Fresh memory: partial sums where importance is small.
    """
    op = "linear_importance_"
    check(op, "x", x)
    check(op, "grad_out", grad_out)
    check(op, "importance", importance, (torch.float32,))
    if not (x.numel() and grad_out.numel()):
        return
    outer = x.dim() == 2
    if outer:
        x, grad_out = x[None], grad_out[None]
    (samples, positions, n_end), m_end = x.shape, grad_out.shape[2]
    # Squares of half precision have twice the digits.
    wide = _wide(x) or (outer and square)
    tiles = importance_tiles(
        4 if wide else x.element_size(),
        None if outer else positions,
        _regular(x) and _regular(grad_out),
        shared_bytes(x.device),
    )
    programs = cdiv(m_end, tiles.m) * cdiv(n_end, tiles.n)
    each = cdiv(positions, tiles.k)
    if outer:
        splits, steps_each = _splits(programs, positions, tiles.k)
    else:
        splits, samples_each = _splits(programs, samples, 1)
        steps_each = samples_each * each
    partial = splits > 1
    out = importance.new_empty(splits, m_end, n_end) if partial else importance[None]
    with on_device_of(x):
        _importance_kernel[(programs, splits)](
            grad_out,
            x,
            out,
            positions,
            m_end,
            n_end,
            *grad_out.stride(),
            *x.stride(),
            *out.stride()[1:],
            out.stride(0),
            samples * each,
            steps_each,
            float(weight),
            OUTER=outer,
            SQUARE=square,
            PARTIAL=partial,
            WIDE=wide,
            GROUP=GROUP,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            TILE_K=tiles.k,
            **_options(tiles),
        )
        if partial:
            total = out.new_empty(m_end, n_end)
            _sum_splits(out, None, total, splits)
            importance.add_(total, alpha=weight)
