"""A linear layer's product with its activation and unit mask in the epilogue.

What the library writes and a pass of its own would read and write again stays in registers. The
weight is the left operand, as in :mod:`maskcl.triton._gemm`: the kernel computes
out[n, m] = act(sum over k of W[m, k] x[n, k] + b[m]) mask[m].
"""

from torch import Tensor

from maskcl.triton._compat import cdiv, on_device_of, tl, triton
from maskcl.triton._formulas import activate
from maskcl.triton._gemm import _tile_of
from maskcl.triton._products import (
    GROUP,
    PROGRAMS,
    _options,
    _regular,
    _wide,
    product_tiles,
    shared_bytes,
)


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mask_ptr,
    out_ptr,
    rows,
    m_end,
    k_end,
    slope,
    HAS_BIAS: tl.constexpr,
    EVEN: tl.constexpr,
    WIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GROUP: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_N: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """``EVEN``: the tiles of k are all full."""
    m_tile, n_tile = _tile_of(
        tl.program_id(0), tl.cdiv(m_end, TILE_M), tl.cdiv(rows, TILE_N), GROUP
    )
    m = m_tile.to(tl.int64) * TILE_M + tl.arange(0, TILE_M)
    n = n_tile.to(tl.int64) * TILE_N + tl.arange(0, TILE_N)
    k = tl.arange(0, TILE_K)
    m_live, n_live = (m < m_end)[:, None], (n < rows)[None, :]
    w_tile = weight_ptr + m[:, None] * k_end + k[None, :]
    x_tile = x_ptr + n[None, :] * k_end + k[:, None]
    acc = tl.zeros([TILE_M, TILE_N], tl.float32)
    for k0 in range(0, k_end, TILE_K):
        w_live, x_live = m_live, n_live
        if not EVEN:
            k_live = k < k_end - k0
            w_live, x_live = m_live & k_live[None, :], n_live & k_live[:, None]
        w = tl.load(w_tile, mask=w_live, other=0.0)
        x = tl.load(x_tile, mask=x_live, other=0.0)
        if WIDE:
            w, x = w.to(tl.float32), x.to(tl.float32)
        acc = tl.dot(w, x, acc, input_precision="ieee")
        w_tile += TILE_K
        x_tile += TILE_K
    if HAS_BIAS:
        acc += tl.load(bias_ptr + m, mask=m < m_end, other=0.0).to(tl.float32)[:, None]
    unit = tl.load(mask_ptr + m, mask=m < m_end, other=0.0).to(tl.float32)
    y = activate(acc, slope, ACTIVATION) * unit[:, None]
    at = n[None, :] * m_end + m[:, None]
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=m_live & n_live)


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, activation: str, slope: float
) -> Tensor | None:
    """act(x W^T + b) mask, [N, O]; None where so few programs would leave a GPU idle.

    There the library splits the sum among more of them, and its output is small.
    """
    rows, (m_end, k_end) = x.shape[0], weight.shape
    # Of float32 a ragged last tile of k takes the registers that a larger tile needs.
    regular = _regular(m_end, k_end) and (x.element_size() != 4 or k_end % 64 == 0)
    tiles = product_tiles(rows, x.element_size(), 0, regular, shared_bytes(x.device))
    programs = cdiv(m_end, tiles.m) * cdiv(rows, tiles.n)
    if programs < PROGRAMS or not k_end:
        return None
    out = x.new_empty(rows, m_end)
    with on_device_of(x):
        _linear_kernel[(programs,)](
            x.contiguous(),
            weight.contiguous(),
            mask if bias is None else bias.contiguous(),
            mask.contiguous(),
            out,
            rows,
            m_end,
            k_end,
            float(slope),
            HAS_BIAS=bias is not None,
            EVEN=k_end % tiles.k == 0,
            WIDE=_wide(x),
            ACTIVATION=activation,
            GROUP=GROUP,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            TILE_K=tiles.k,
            **_options(tiles),
        )
    return out
