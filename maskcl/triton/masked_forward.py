"""y = act(x + b) m in Triton, one pass each way; see :mod:`maskcl.reference.masked_forward`.

A dense tensor is read as (outer, channels, inner) in the order of its memory: contiguous,
channels_last and any other permutation alike. With inner = 1 the channels lie side by side, else a
run of ``inner`` elements shares its channel.
"""

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, cdiv, check, on_device_of, power_of_2, tl, triton
from maskcl.triton._formulas import activate, activation_slope

TILE = 2048  # elements of a tile: 16 for each of 128 threads
BACKWARD_TILE = 1024  # with two more values held an element
# Programs of the backward at most; fixed, so that the order of the sums depends on the shape alone.
PROGRAMS = 1024


@triton.jit(do_not_specialize=["channels"])
def _forward_kernel(
    x_ptr,
    mask_ptr,
    bias_ptr,
    y_ptr,
    rows,
    columns,
    channels,
    slope,
    HAS_BIAS: tl.constexpr,
    CHANNELS_INSIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The tensor as [rows, columns]: a channel is a column, or row % channels."""
    blocks = tl.cdiv(columns, COLUMNS)
    row0 = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
    r = row0 + tl.arange(0, ROWS)
    c = (tl.program_id(0) % blocks).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    live = (r < rows)[:, None] & (c < columns)[None, :]
    at = r[:, None] * columns + c[None, :]
    x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    if CHANNELS_INSIDE:
        if HAS_BIAS:
            x += tl.load(bias_ptr + c, mask=c < columns, other=0.0).to(tl.float32)[None, :]
        m = tl.load(mask_ptr + c, mask=c < columns, other=0.0).to(tl.float32)[None, :]
    else:
        # One int64 remainder a program; those of the rows are as narrow as the channel count.
        channel = ((row0 % channels).to(channels.dtype) + tl.arange(0, ROWS)) % channels
        if HAS_BIAS:
            x += tl.load(bias_ptr + channel).to(tl.float32)[:, None]
        m = tl.load(mask_ptr + channel).to(tl.float32)[:, None]
    y = activate(x, slope, ACTIVATION) * m
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _backward_kernel(
    grad_ptr,
    saved_ptr,
    mask_ptr,
    bias_ptr,
    dz_ptr,
    mask_parts_ptr,
    bias_parts_ptr,
    outer,
    channels,
    inner,
    tiles,
    tiles_each,
    slope,
    HAS_BIAS: tl.constexpr,
    CHANNELS_INSIDE: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    MASK_GRAD: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
    ACTIVATION: tl.constexpr,
    OUTER: tl.constexpr,
    LANES: tl.constexpr,
):
    """Take tiles_each tiles of one channel, or of LANES channels side by side.

    Leaves one partial sum a channel in row program_id(1) of the parts, [programs, channels].
    """
    stripe = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, LANES)
    if CHANNELS_INSIDE:
        channel = tl.program_id(0).to(tl.int64) * LANES + lane
        channel_live = channel < channels
        m = tl.load(mask_ptr + channel, mask=channel_live, other=0.0).to(tl.float32)[None, :]
        if HAS_BIAS:
            b = tl.load(bias_ptr + channel, mask=channel_live, other=0.0).to(tl.float32)[None, :]
    else:
        channel = tl.program_id(0).to(tl.int64)
        m = tl.load(mask_ptr + channel).to(tl.float32)
        if HAS_BIAS:
            b = tl.load(bias_ptr + channel).to(tl.float32)
    dmask = tl.zeros([OUTER, LANES], tl.float32)
    dbias = tl.zeros([OUTER, LANES], tl.float32)
    blocks = tl.cdiv(inner, LANES)
    last = tl.minimum((stripe + 1) * tiles_each, tiles)
    for tile in range(stripe * tiles_each, last):
        if CHANNELS_INSIDE:
            n = tile * OUTER + tl.arange(0, OUTER)
            live = (n < outer)[:, None] & channel_live[None, :]
            at = n[:, None] * channels + channel[None, :]
        else:
            n = (tile // blocks) * OUTER + tl.arange(0, OUTER)
            j = (tile % blocks) * LANES + lane
            live = (n < outer)[:, None] & (j < inner)[None, :]
            at = (n * channels + channel)[:, None] * inner + j[None, :]
        g = tl.load(grad_ptr + at, mask=live, other=0.0).to(tl.float32)
        z = tl.load(saved_ptr + at, mask=live, other=0.0).to(tl.float32)
        if FROM_OUTPUT:
            a = tl.where(m != 0, z / tl.where(m != 0, m, 1.0), 0.0)
        else:
            if HAS_BIAS:
                z += b
            a = activate(z, slope, ACTIVATION)
        dz = g * m * activation_slope(z, a, slope, ACTIVATION)
        tl.store(dz_ptr + at, dz.to(dz_ptr.dtype.element_ty), mask=live)
        if MASK_GRAD:
            dmask += g * a  # g is 0 beside the tensor
        if BIAS_GRAD:
            dbias += dz
    into = stripe * channels + channel
    if CHANNELS_INSIDE:
        if MASK_GRAD:
            tl.store(mask_parts_ptr + into, tl.sum(dmask, 0), mask=channel_live)
        if BIAS_GRAD:
            tl.store(bias_parts_ptr + into, tl.sum(dbias, 0), mask=channel_live)
    else:
        if MASK_GRAD:
            tl.store(mask_parts_ptr + into, tl.sum(tl.sum(dmask, 1), 0))
        if BIAS_GRAD:
            tl.store(bias_parts_ptr + into, tl.sum(tl.sum(dbias, 1), 0))


@triton.jit
def _sum_parts_kernel(
    parts_ptr, out_ptr, stripes, channels, ROWS: tl.constexpr, LANES: tl.constexpr
):
    channel = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    total = tl.zeros([ROWS, LANES], tl.float32)
    for row0 in range(0, stripes, ROWS):
        r = row0 + tl.arange(0, ROWS).to(tl.int64)
        live = (r < stripes)[:, None] & (channel < channels)[None, :]
        at = r[:, None] * channels + channel[None, :]
        total += tl.load(parts_ptr + at, mask=live, other=0.0)
    tl.store(out_ptr + channel, tl.sum(total, 0), mask=channel < channels)


def dense(x: Tensor) -> Tensor:
    """``x`` itself where its elements fill one block of memory in some order, else a copy."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return torch.empty_like(x).copy_(x)
        expected *= size
    return x


def like(x: Tensor, other: Tensor) -> Tensor:
    """``x`` with the strides of ``other``, a dense tensor; ``x`` itself where it has them."""
    return x if x.stride() == other.stride() else torch.empty_like(other, dtype=x.dtype).copy_(x)


def split(x: Tensor, channel_dim: int) -> tuple[int, int, int]:
    """(outer, channels, inner) of a dense, non-empty ``x`` in the order of its memory."""
    channels = x.shape[channel_dim]
    if channels == 1:
        return 1, 1, x.numel()
    inner = x.stride(channel_dim)
    return x.numel() // (channels * inner), channels, inner


def _forward(
    x: Tensor, y: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float, dim: int
) -> None:
    """Write y = act(x + b) m for dense, non-empty x and y of the same strides; y may be x."""
    outer, channels, inner = split(x, dim)
    inside = inner == 1
    rows, columns = (outer, channels) if inside else (outer * channels, inner)
    tile_columns = min(power_of_2(columns), TILE // 2)
    tile_rows = min(power_of_2(rows), TILE // tile_columns)
    mask = mask.contiguous()
    with on_device_of(x):
        _forward_kernel[(cdiv(rows, tile_rows) * cdiv(columns, tile_columns),)](
            x,
            mask,
            mask if bias is None else bias.contiguous(),
            y,
            rows,
            columns,
            channels,
            float(slope),
            HAS_BIAS=bias is not None,
            CHANNELS_INSIDE=inside,
            ACTIVATION=activation,
            ROWS=tile_rows,
            COLUMNS=tile_columns,
            **OPTIONS,
        )


def masked_activation(
    x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float, channel_dim: int
) -> Tensor:
    """Return y = act(x + b) m: x [.., C, ..], mask and bias [C] -> y in x's dtype and order."""
    check("masked_activation", "x", x)
    y = torch.empty_like(x)
    if x.numel():
        _forward(like(x, y), y, mask, bias, activation, slope, channel_dim)
    return y


def masked_activation_(
    x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float, channel_dim: int
) -> None:
    """The same, written over x."""
    check("masked_activation_", "x", x)
    if x.numel():
        y = dense(x)
        _forward(y, y, mask, bias, activation, slope, channel_dim)
        if y is not x:
            x.copy_(y)


def masked_activation_backward(
    grad: Tensor,
    saved: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    activation: str,
    slope: float,
    channel_dim: int,
    from_output: bool,
    mask_grad: bool,
    bias_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dz like saved, dmask float32 [C], dbias float32 [C]); those not asked for are [0]."""
    check("masked_activation_backward", "saved", saved)
    dz = torch.empty_like(saved)
    total = saved.shape[channel_dim]
    dmask = mask.new_empty(total if mask_grad else 0, dtype=torch.float32)
    dbias = mask.new_empty(total if bias_grad else 0, dtype=torch.float32)
    if not saved.numel():
        return dz, dmask.zero_(), dbias.zero_()
    outer, channels, inner = split(dz, channel_dim)
    inside = inner == 1
    lanes = min(power_of_2(channels if inside else inner), 128 if inside else BACKWARD_TILE // 2)
    depth = min(power_of_2(outer), BACKWARD_TILE // lanes)
    tiles = cdiv(outer, depth) * (1 if inside else cdiv(inner, lanes))
    across = cdiv(channels, lanes) if inside else channels
    each = cdiv(tiles, min(tiles, max(1, PROGRAMS // across)))
    stripes = cdiv(tiles, each)

    def parts(out: Tensor) -> Tensor:
        return out if stripes == 1 or not out.numel() else out.new_empty(stripes, channels)

    mask_parts, bias_parts = parts(dmask), parts(dbias)
    mask = mask.contiguous()
    with on_device_of(saved):
        _backward_kernel[(across, stripes)](
            like(grad, dz),
            like(saved, dz),
            mask,
            mask if bias is None else bias.contiguous(),
            dz,
            mask_parts,
            bias_parts,
            outer,
            channels,
            inner,
            tiles,
            each,
            float(slope),
            HAS_BIAS=bias is not None,
            CHANNELS_INSIDE=inside,
            FROM_OUTPUT=from_output,
            MASK_GRAD=mask_grad,
            BIAS_GRAD=bias_grad,
            ACTIVATION=activation,
            OUTER=depth,
            LANES=lanes,
            **OPTIONS,
        )
        for sums, out in ((mask_parts, dmask), (bias_parts, dbias)):
            if sums is not out:
                _sum_parts_kernel[(cdiv(channels, 64),)](
                    sums, out, stripes, channels, ROWS=32, LANES=64, **OPTIONS
                )
    return dz, dmask, dbias
