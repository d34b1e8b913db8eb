"""Launchers of the products in :mod:`maskcl.triton._gemm`, and the tiles they are cut into."""

from dataclasses import dataclass

import torch
from torch import Tensor

from maskcl.reference.weight_mask import threshold_for
from maskcl.triton import _compat
from maskcl.triton._compat import OPTIONS, cdiv, on_device_of
from maskcl.triton._gemm import _masked_product_kernel, _sum_splits_kernel, _weight_grad_kernel

PROGRAMS = 128  # with fewer, multiprocessors idle, so that the sum is split among more
MAX_SPLITS = 16
GROUP = 8  # tiles along m in a row of programs, which share their x in the cache
SUM_BLOCK = 1024
# Shared memory that a program may have: of the smallest GPUs since capability 8.0, and of Hopper.
SMALL_SHARED, LARGE_SHARED = 101376, 232448
# Of GEMMs the multiply-add is one instruction: the order of the sum is the hardware's anyway.
FUSION = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class Source:
    """What chooses the weights: scores and their rule, or words ("bits", ternary "bits2")."""

    tensor: Tensor
    kth: Tensor | None
    levels: str
    threshold: float
    inclusive: bool
    scale: float


def from_scores(
    scores: Tensor, kth: Tensor | None, levels: str, threshold: float, inclusive: bool, scale: float
) -> Source:
    """Scores and their rule as a source."""
    threshold = threshold_for(scores.dtype, levels, threshold)
    return Source(scores, kth, levels, threshold, inclusive, float(scale))


def from_words(words: Tensor) -> Source:
    """Words [W] or [2, W] as a source."""
    levels = "bits" if words.dim() == 1 else "bits2"
    return Source(words.contiguous(), None, levels, 0.0, False, 1.0)


@dataclass(frozen=True)
class Tiles:
    """The tile of a program, its warps, and how many tiles along k are on their way at once."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may have."""
    if device.type != "cuda":
        return SMALL_SHARED
    return int(torch.cuda.get_device_properties(device).shared_memory_per_block_optin)


def _staged(
    m: int, n: int, k: int, warps: int, stage_bytes: int, shared: int, most: int = 4
) -> Tiles:
    # 2 KiB are left to words and to the barriers of the loads.
    return Tiles(m, n, k, warps, max(2, min(most, (shared - 2048) // stage_bytes)))


def product_tiles(rows: int, element: int, source: int, regular: bool, shared: int) -> Tiles:
    """Tiles of x [rows, K] (W m)^T: bytes of an element of x and of one of the source (words: 0).

    A batch of up to 16 is bound by the memory that W is read from, so that many long tiles of few
    rows of W are on their way; a large one by the tensor cores, which want large tiles. Rows that
    are not ``regular`` are read element by element, which takes registers.
    """
    if element == 4:  # no tensor cores: products of float32 are exact to float32
        m, n, k, warps = (64 if regular else 32, 32, 32, 4)
        if rows <= 16 and regular:
            m, n, k, warps = (32, 16, 64, 4)
    elif not regular:
        m, n, k, warps = (64, 64, 32, 4)
    elif rows <= 16:
        m, n, k, warps = (64, 16, 64, 4) if source else (32, 16, 128, 4)
    elif rows <= 64:
        m, n, k, warps = (64, 64, 64, 4)
    elif shared < LARGE_SHARED:
        m, n, k, warps = (64 if source else 128, 128, 32, 8)
    else:
        m, n, k, warps = (128, 128 if source or rows <= 256 else 256, 64, 8)
    most = 6 if rows <= 16 and regular and not source else 4
    return _staged(m, n, k, warps, (m + n) * k * element + m * k * source, shared, most)


def grad_tiles(element: int, regular: bool, plain: bool, shared: int) -> Tiles:
    """Tiles of the weight's gradient grad^T x; ``plain``: nothing but G W is made of it."""
    if element == 4:
        m, n, k, warps = (64, 32, 32, 4)
    elif not regular:
        m, n, k, warps = (64, 64, 32, 8)
    elif shared < LARGE_SHARED:
        m, n, k, warps = (128, 128 if plain else 64, 32, 8)
    else:
        m, n, k, warps = (128, 256 if plain else 64, 64, 8)
    return _staged(m, n, k, warps, (m + n) * k * element, shared)


def _regular(*lengths: int) -> bool:
    """Whether the compiler sees that rows of such lengths are aligned for wide loads."""
    return all(length % 16 == 0 for length in lengths)


def _splits(programs: int, length: int, tile: int) -> tuple[int, int]:
    """Into how many parts, and of how many tiles, a sum of ``length`` terms is cut."""
    tiles = max(1, cdiv(length, tile))
    wanted = min(MAX_SPLITS, PROGRAMS // programs, tiles // 4)
    each = cdiv(tiles, max(1, wanted))
    return cdiv(tiles, each), each


def _wide(x: Tensor) -> bool:
    # The interpreter multiplies bfloat16 as the integers that hold it.
    return _compat.INTERPRETED and x.dtype == torch.bfloat16


def _options(tiles: Tiles) -> dict[str, int | bool]:
    stages = {"num_warps": tiles.warps, "num_stages": tiles.stages}
    return {**OPTIONS, **FUSION, **stages}


def _sum_splits(parts: Tensor, bias: Tensor | None, out: Tensor, splits: int) -> None:
    count = out.numel()
    _sum_splits_kernel[(cdiv(count, SUM_BLOCK),)](
        parts,
        parts if bias is None else bias,
        out,
        splits,
        count,
        out.shape[1],
        HAS_BIAS=bias is not None,
        BLOCK=SUM_BLOCK,
        **OPTIONS,
    )


def masked_product(
    x: Tensor, weight: Tensor, source: Source, bias: Tensor | None, transposed: bool
) -> Tensor:
    """x (W m)^T + bias, [N, O]; ``transposed``: x (W m), [N, I]. W [O, I], in x's dtype.

    Sums are float32. Fresh memory: the result, and partial sums where it is small.
    """
    rows, columns = x.shape[0], weight.shape[1]
    m_end, k_end = (columns, weight.shape[0]) if transposed else weight.shape
    out = x.new_empty(rows, m_end)
    if not out.numel():
        return out
    bits = source.levels in ("bits", "bits2")
    source_bytes = 0 if bits else source.tensor.element_size()
    regular = _regular(columns, k_end)
    tiles = product_tiles(rows, x.element_size(), source_bytes, regular, shared_bytes(x.device))
    programs = cdiv(m_end, tiles.m) * cdiv(rows, tiles.n)
    splits, each = _splits(programs, k_end, tiles.k)
    parts = out if splits == 1 else out.new_empty(splits, rows, m_end, dtype=torch.float32)
    chosen = source.tensor.contiguous()
    bias = None if bias is None else bias.contiguous()
    with on_device_of(x):
        _masked_product_kernel[(programs, splits)](
            x.contiguous(),
            weight.contiguous(),
            chosen,
            chosen if source.kth is None else source.kth,
            chosen if bias is None else bias,
            parts,
            rows,
            m_end,
            k_end,
            columns,
            chosen.shape[-1],
            each,
            source.threshold,
            source.scale,
            LEVELS=source.levels,
            INCLUSIVE=source.inclusive,
            HAS_BIAS=bias is not None and splits == 1,
            TRANSPOSED=transposed,
            ALIGNED=columns % 32 == 0,
            EVEN=k_end % tiles.k == 0,
            WIDE=_wide(x),
            GROUP=GROUP,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            TILE_K=tiles.k,
            **_options(tiles),
        )
        if splits > 1:
            _sum_splits(parts, bias, out, splits)
    return out


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    source: Source,
    dweight: Tensor | None,
    dscores: Tensor | None,
) -> Tensor | None:
    """Write G m and G W, with G = grad^T x [O, I] left in the accumulator.

    Where O and I are so small that the sum over the batch is split, nothing is written and the
    float32 G is returned instead.
    """
    rows, (m_end, n_end) = x.shape[0], weight.shape
    plain = dweight is None and source.levels != "soft"
    regular = _regular(m_end, n_end)
    tiles = grad_tiles(x.element_size(), regular, plain, shared_bytes(x.device))
    programs = cdiv(m_end, tiles.m) * cdiv(n_end, tiles.n)
    splits, each = _splits(programs, rows, tiles.k)
    parts = weight.new_empty((splits, m_end, n_end) if splits > 1 else (1,), dtype=torch.float32)
    with on_device_of(x):
        _weight_grad_kernel[(programs, splits)](
            grad.contiguous(),
            x.contiguous(),
            weight.contiguous(),
            source.tensor.contiguous(),
            parts if source.kth is None else source.kth,
            parts if dweight is None else dweight,
            parts if dscores is None else dscores,
            parts,
            rows,
            m_end,
            n_end,
            each,
            source.threshold,
            source.scale,
            LEVELS=source.levels,
            INCLUSIVE=source.inclusive,
            WANT_WEIGHT=dweight is not None,
            WANT_SCORES=dscores is not None,
            PARTIAL=splits > 1,
            WIDE=_wide(x),
            GROUP=GROUP,
            TILE_M=tiles.m,
            TILE_N=tiles.n,
            TILE_K=tiles.k,
            **_options(tiles),
        )
        if splits == 1:
            return None
        full = parts.new_empty(m_end, n_end)
        _sum_splits(parts, None, full, splits)
        return full
