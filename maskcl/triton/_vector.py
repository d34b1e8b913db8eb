"""One row times a weight masked by bits: bound by the memory that W and its bits are read from."""

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, cdiv, on_device_of, tl, triton
from maskcl.triton._formulas import bit_value, masked

TILE = 4096  # weights of a program's tile
MANY_ROWS = 2048  # of W: with fewer, programs take two rows so that there are enough of them


@triton.jit
def _masked_vector_kernel(
    x_ptr,
    weight_ptr,
    bytes_ptr,
    bias_ptr,
    out_ptr,
    m_end,
    k_end,
    plane,
    HAS_BIAS: tl.constexpr,
    TERNARY: tl.constexpr,
    TILE_M: tl.constexpr,
    TILE_K: tl.constexpr,
):
    """out[m] = sum over k of (W m)[m, k] x[k]; eight weights in a row, and their byte, a thread."""
    m = tl.program_id(0).to(tl.int64) * TILE_M + tl.arange(0, TILE_M)
    eighth = tl.arange(0, 8)
    acc = tl.zeros([TILE_M, TILE_K // 8, 8], tl.float32)
    for k0 in range(0, k_end, TILE_K):
        b = k0 // 8 + tl.arange(0, TILE_K // 8)
        live = (m < m_end)[:, None] & (b * 8 < k_end)[None, :]
        at = m[:, None] * (k_end // 8) + b[None, :]
        on = tl.load(bytes_ptr + at, mask=live, other=0)[:, :, None] >> eighth[None, None, :]
        negative = on
        if TERNARY:
            byte = tl.load(bytes_ptr + plane + at, mask=live, other=0)
            negative = byte[:, :, None] >> eighth[None, None, :]
        at8 = (at * 8)[:, :, None] + eighth[None, None, :]
        w = tl.load(weight_ptr + at8, mask=live[:, :, None], other=0.0)
        k = (b * 8)[:, None] + eighth[None, :]
        x = tl.load(x_ptr + k, mask=k < k_end, other=0.0).to(tl.float32)
        chosen = bit_value(on, negative, TERNARY)
        acc += masked(w, chosen, False).to(tl.float32) * x[None, :, :]
    total = tl.sum(tl.sum(acc, 2), 1)
    if HAS_BIAS:
        total += tl.load(bias_ptr + m, mask=m < m_end, other=0.0).to(tl.float32)
    tl.store(out_ptr + m, total.to(out_ptr.dtype.element_ty), mask=m < m_end)


def masked_vector(x: Tensor, weight: Tensor, words: Tensor, bias: Tensor | None) -> Tensor:
    """x (W m)^T + bias for one row x [1, I], I a multiple of 32: W and its bits are read once."""
    m_end, k_end = weight.shape
    out = x.new_empty(1, m_end)
    if m_end:
        tall = 8 if m_end >= MANY_ROWS else 2
        octets = words.contiguous().view(torch.uint8)
        with on_device_of(x):
            _masked_vector_kernel[(cdiv(m_end, tall),)](
                x.contiguous(),
                weight.contiguous(),
                octets,
                out if bias is None else bias.contiguous(),
                out,
                m_end,
                k_end,
                octets.shape[-1],
                HAS_BIAS=bias is not None,
                TERNARY=words.dim() == 2,
                TILE_M=tall,
                TILE_K=TILE // tall,
                **{**OPTIONS, "enable_fp_fusion": True},
            )
    return out
