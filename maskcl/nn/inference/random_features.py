"""Random features of inputs: what every task sees alike, whatever the network has learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST = 2000
PER_INPUT = 16


def width_for(inputs: int) -> int:
    """How many features inputs of this many numbers get where none were asked for."""
    return min(LARGEST, PER_INPUT * inputs)


def projection(inputs: int, features: int, seed: int) -> Tensor:
    """float32 [features, inputs], N(0, 1 / inputs): a function of the arguments alone."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(features, inputs, generator=generator) / math.sqrt(inputs)


def random_features(rows: Tensor, weight: Tensor) -> Tensor:
    """max(0, x W') of rows, [R, features] (RanPAC: McDonnell et al. 2023, arXiv 2307.02251).

    Args:
        rows: dense, all but the first dimension taken together; or sparse CSR [R, inputs].
        weight: of `projection`.
    """
    if rows.layout == torch.sparse_csr:
        return torch.relu(rows.to(weight.dtype) @ weight.T)
    return torch.relu(rows.flatten(1).to(weight.dtype) @ weight.T)
