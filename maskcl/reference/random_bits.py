"""Random bits that follow from a counter alone, the same on every backend, in plain torch.

splitmix64's finaliser (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators")
of key + golden * counter: neither threads nor blocks nor the order of elements make a difference.
"""

from __future__ import annotations

import torch
from torch import Tensor

GOLDEN = -7046029254386353131
_MIX1, _MIX2 = -4658895280553007687, -7723592293110705685


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Of int64 as if it were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix(x: Tensor) -> Tensor:
    """The finaliser of int64."""
    x = (x ^ shift_right(x, 30)) * _MIX1
    x = (x ^ shift_right(x, 27)) * _MIX2
    return x ^ shift_right(x, 31)


def random_bits(
    key: int | Tensor, first: int, shape: torch.Size | tuple[int, ...], device: torch.device
) -> Tensor:
    """64 bits for each element of a tensor, int64; its element 0 has the counter ``first``."""
    count = torch.Size(shape).numel()
    counter = torch.arange(count, dtype=torch.int64, device=device) + first
    return splitmix(counter * GOLDEN + key).view(shape)


def step_key(seed: int, draw: Tensor) -> Tensor:
    """The key of one draw of all numbers, 0-d int64: neighbouring draws have nothing in common."""
    return splitmix(draw.to(torch.int64) * GOLDEN + seed)


def round_stochastic(x: Tensor, bits: Tensor) -> Tensor:
    """float32 to bfloat16: away from 0 as often as x lies that far between its two neighbours.

    Args:
        x: float32 [*]; what is bfloat16 already stays as it is, and so do infinities and NaN.
        bits: int64 [*], the 16 lowest of which decide: up where they and the 16 bits that bfloat16
            lacks add up to 2^16 or more.
    """
    whole = x.contiguous().view(torch.int32)
    moved = (whole + (bits & 0xFFFF).to(torch.int32)) & -0x10000
    rounded = torch.where(x.isfinite(), moved.view(torch.float32), x)
    return rounded.to(torch.bfloat16)
