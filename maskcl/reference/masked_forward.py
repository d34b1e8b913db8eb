"""y = act(x + b) m: a unit mask fused with the activation before it, in plain torch.

HAT applies the mask to the output of a layer's units (Serra et al. 2018, section 2.2, h' = a h).

C++ takes subnormal numbers (below 2^-126 in its float32 arithmetic) as 0 here, and makes
0 of results that would be.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl.reference.gate import compute_dtype

ACTIVATIONS = ("identity", "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu")
# The derivative of these can be had from the activation's value, so that only y need be kept.
FROM_OUTPUT = ("identity", "relu", "tanh", "sigmoid", "leaky_relu")
GELU_TANH_SCALE = math.sqrt(2 / math.pi)
GELU_TANH_CUBIC = 0.044715


def activate(x: Tensor, activation: str, slope: float) -> Tensor:
    """The activation itself; ``slope`` is leaky_relu's."""
    match activation:
        case "identity":
            return x
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "silu":
            return F.silu(x)
        case "tanh":
            return torch.tanh(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "leaky_relu":
            return F.leaky_relu(x, slope)
    raise ValueError(f"activation: found {activation!r}, wanted one of {', '.join(ACTIVATIONS)}")


def slope_from_input(x: Tensor, activation: str, slope: float) -> Tensor:
    """act'(x)."""
    match activation:
        case "gelu":
            density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
            return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * density
        case "gelu_tanh":
            t = torch.tanh(GELU_TANH_SCALE * (x + GELU_TANH_CUBIC * x * x * x))
            inner = GELU_TANH_SCALE * (1 + 3 * GELU_TANH_CUBIC * x * x)
            return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner
        case "silu":
            p = torch.sigmoid(x)
            return p * (1 + x * (1 - p))
    return slope_from_output(activate(x, activation, slope), activation, slope)


def slope_from_output(a: Tensor, activation: str, slope: float) -> Tensor:
    """act' as a function of a = act(x), for the activations in FROM_OUTPUT."""
    match activation:
        case "identity":
            return torch.ones_like(a)
        case "relu":
            return (a > 0).to(a.dtype)
        case "tanh":
            return 1 - a * a
        case "sigmoid":
            return a * (1 - a)
        case "leaky_relu":
            return torch.where(a > 0, torch.ones_like(a), slope)
    raise ValueError(f"activation: {activation!r} has no derivative in terms of its output")


def _along(vector: Tensor, x: Tensor, channel_dim: int, dtype: torch.dtype) -> Tensor:
    shape = [1] * x.dim()
    shape[channel_dim] = vector.numel()
    return vector.to(dtype).view(shape)


def masked_activation(
    x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float, channel_dim: int
) -> Tensor:
    """y = act(x + b) m. x [.., C, ..], mask and bias [C] -> y like x; float32 or float64 inside."""
    dtype = compute_dtype(x.dtype)
    z = x.to(dtype)
    if bias is not None:
        z = z + _along(bias, x, channel_dim, dtype)
    return (activate(z, activation, slope) * _along(mask, x, channel_dim, dtype)).to(x.dtype)


def masked_activation_(
    x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, slope: float, channel_dim: int
) -> None:
    """The same, written over x."""
    x.copy_(masked_activation(x, mask, bias, activation, slope, channel_dim))


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
    """(dz like saved, dmask [C], dbias [C]); those not asked for are [0].

    ``saved`` is y with from_output (then act(x + b) = y / m, and 0 where m is 0), else x. With
    a = act(x + b): dz = g m act', dmask = sum g a, dbias = sum dz, the sums over all but the
    channel.
    """
    dtype = compute_dtype(saved.dtype)
    g = grad.to(dtype)
    m = _along(mask, saved, channel_dim, dtype)
    if from_output:
        a = torch.where(m != 0, saved.to(dtype) / m, 0.0)
        slopes = slope_from_output(a, activation, slope)
    else:
        z = saved.to(dtype)
        if bias is not None:
            z = z + _along(bias, saved, channel_dim, dtype)
        a = activate(z, activation, slope)
        slopes = slope_from_input(z, activation, slope)
    dz = g * m * slopes
    others = [d for d in range(saved.dim()) if d != channel_dim % saved.dim()]
    none = mask.new_empty(0, dtype=dtype)
    dmask = _sum(g * a, others) if mask_grad else none
    dbias = _sum(dz, others) if bias_grad else none.clone()
    return dz.to(saved.dtype), dmask, dbias


def _sum(x: Tensor, dims: list[int]) -> Tensor:
    return x.sum(dims) if dims else x.clone()
