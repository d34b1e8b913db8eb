"""Protection of the weights that earlier tasks use, in plain torch.

Unit u's tasks are a bit set, W words of 64: bit k of ``tasks[u]`` says that task k uses the unit. A
side that every task uses (the network's input, the in side of a bias) is one row of -1. Weight (o,
i) is protected

* ``exact``: where some one task uses both of its ends, out[o] & in[i] != 0;
* else (the paper's rule, Serra et al. 2018, eq. 2: min of both cumulative masks): where both are !=
0.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from maskcl.reference.gate import compute_dtype
from maskcl.reference.random_bits import random_bits, shift_right

RULES = ("hat", "const", "adahat", "random")
AGGREGATIONS = ("min", "max", "mean")


def popcount(words: Tensor) -> Tensor:
    """Bits set in int64 words [..., W] -> int64 [...], adding neighbours in ever wider fields."""
    pairs, nibbles, octets = 0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F
    x = words - ((words >> 1) & pairs)
    x = (x & nibbles) + ((x >> 2) & nibbles)
    x = (x + (x >> 4)) & octets
    return ((x * 0x0101010101010101) >> 56).sum(-1)


def _grouped(
    weight: Tensor, out_side: Tensor, in_side: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """The sides as [O, 1, W] and [O or 1, I, W]: a plain broadcast pairs rows with columns."""
    rows, columns = weight.shape[0], weight.shape[1] if weight.dim() > 1 else 1
    num_words = out_side.shape[-1]
    out_side = out_side.view(out_side.shape[0], 1, num_words)
    if in_side.shape[0] == 1:
        return out_side, in_side.view(1, 1, num_words)
    in_side = in_side.view(groups, columns, num_words)
    if groups > 1:
        in_side = in_side.repeat_interleave(rows // groups, 0)
    return out_side, in_side


def users(weight: Tensor, out_tasks: Tensor, in_tasks: Tensor, groups: int, exact: bool) -> Tensor:
    """Number of tasks that use weight (o, i), int64 [O, I] (or broadcastable to it)."""
    out_side, in_side = _grouped(weight, out_tasks, in_tasks, groups)
    if exact:
        # Word by word: [O, I, W] would be W times the size of the weight.
        words = zip(out_side.split(1, -1), in_side.split(1, -1), strict=True)
        return functools.reduce(torch.add, (popcount(a & b) for a, b in words))
    return torch.minimum(popcount(out_side), popcount(in_side))


def _over(matrix: Tensor, weight: Tensor) -> Tensor:
    """[O, I] -> a view that broadcasts over weight [O, I, *] or a vector [O]."""
    if weight.dim() < 2:
        return matrix.reshape(matrix.shape[0])
    return matrix.view(*matrix.shape, *[1] * (weight.dim() - 2))


def uniform(seed: int, tensor_index: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Counter-based uniform numbers in [0, 1), float32, the same on every backend.

    The upper 24 of the `random_bits` of (tensor << 40 + flat index).
    """
    bits = random_bits(seed, tensor_index << 40, shape, device)
    return shift_right(bits, 40).to(torch.float32) * 2.0**-24


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
    """Scale each gradient where its weight is protected, in place.

    grads[t] [O, I, *] or [O]; out_tasks[t] int64 [O, W] or [1, W]; in_tasks[t] int64 [groups I, W]
    or [1, W]. ``hat`` writes 0 (whatever was there), ``const`` multiplies by values[t], ``random``
    by uniform numbers, ``adahat`` every element by r / (n + r) with r = values[t] and n the number
    of tasks that use the weight (Wang et al. 2024, "AdaHAT", eq. 9 and 10).
    """
    for t, grad in enumerate(grads):
        n = _over(users(grad, out_tasks[t], in_tasks[t], groups[t], exact), grad)
        wide = grad.to(compute_dtype(grad.dtype))
        match rule:
            case "hat":
                result = torch.where(n > 0, torch.zeros_like(wide), wide)
            case "const":
                result = torch.where(n > 0, wide * values[t], wide)
            case "adahat":
                r = torch.tensor(values[t], dtype=wide.dtype, device=wide.device)
                result = torch.where(n > 0, wide * (r / (n.to(wide.dtype) + r)), wide)
            case "random":
                factor = uniform(seed, t, grad.shape, grad.device).to(wide.dtype)
                result = torch.where(n > 0, wide * factor, wide)
            case _:
                raise ValueError(f"rule: found {rule!r}, wanted one of {', '.join(RULES)}")
        grad.copy_(result)


def restore_protected_(
    params: list[Tensor],
    saved: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
) -> None:
    """params[t] = saved[t] where the weight is protected, elsewhere untouched; in place."""
    for t, param in enumerate(params):
        n = _over(users(param, out_tasks[t], in_tasks[t], groups[t], exact), param)
        param.copy_(torch.where(n > 0, saved[t], param))


def clamp_grads_soft_(
    grads: list[Tensor],
    out_masks: list[Tensor],
    in_masks: list[Tensor],
    groups: list[int],
    aggregation: str,
) -> None:
    """grads[t] *= 1 - agg(out_masks[t][o], in_masks[t][i]); an empty side leaves only the other.

    out_masks[t] float [O] or [0]; in_masks[t] float [groups I] or [0] (Serra et al. 2018, eq. 2).
    """
    for t, grad in enumerate(grads):
        dtype = compute_dtype(grad.dtype)
        out_side, in_side = out_masks[t].to(dtype), in_masks[t].to(dtype)
        if out_side.numel() and in_side.numel():
            sides = _grouped(grad, out_side[:, None], in_side[:, None], groups[t])
            matrix = _aggregate(sides[0].squeeze(-1), sides[1].squeeze(-1), aggregation)
        elif in_side.numel():
            sides = _grouped(grad, in_side.new_ones(1, 1), in_side[:, None], groups[t])
            matrix = sides[1].squeeze(-1)
        else:
            matrix = out_side.view(-1, 1)
        if not matrix.numel():
            continue
        grad.copy_(grad.to(dtype) * (1 - _over(matrix, grad)))


def _aggregate(a: Tensor, b: Tensor, aggregation: str) -> Tensor:
    match aggregation:
        case "min":
            return torch.minimum(a, b)
        case "max":
            return torch.maximum(a, b)
        case "mean":
            return (a + b) * 0.5
    raise ValueError(f"aggregation: found {aggregation!r}, wanted one of {', '.join(AGGREGATIONS)}")
