"""Packed weights and layers beside the dense layer and beside unpacking first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.conftest import copy_of, device
from maskcl import ops

SIZE = 4096
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def layer(dtype):
    """Weight, a byte a weight (the original's format), and words."""
    weight = torch.randn(SIZE, SIZE, device=device(), dtype=dtype)
    mask = torch.rand(SIZE, SIZE, device=device()) > 0.5
    return weight, mask.to(torch.uint8), ops.pack_mask(mask)


LINEAR = ["maskcl", "F.linear, no mask", "unpack, multiply, linear", "byte mask, multiply, linear"]


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 4, 16, 256])
def test_packed_linear(timed, batch, dtype, name):
    weight, mask, words = layer(DTYPES[dtype])
    x = torch.randn(batch, SIZE, device=device(), dtype=DTYPES[dtype])
    functions = {
        "maskcl": lambda: ops.packed_linear(x, weight, words),
        "F.linear, no mask": lambda: F.linear(x, weight),
        "unpack, multiply, linear": lambda: F.linear(
            x, weight * ops.unpack_mask(words, weight.shape, dtype=weight.dtype)
        ),
        "byte mask, multiply, linear": lambda: F.linear(x, weight * mask),
    }
    floor = weight.numel() * weight.element_size() + words.numel() * 4
    with torch.no_grad():
        timed(f"packed_linear, N {batch}, 4096x4096, {dtype}", name, functions[name], floor)


@pytest.mark.parametrize("name", ["maskcl", "byte mask, multiply", "memcpy"])
def test_packed_weight(timed, name):
    weight, mask, words = layer(torch.float32)
    floor = 2 * weight.numel() * 4 + words.numel() * 4
    functions = {
        "maskcl": lambda: ops.packed_weight(weight, words),
        "byte mask, multiply": lambda: weight * mask,
        "memcpy": copy_of(floor),
    }
    timed("packed_weight, 4096x4096, float32", name, functions[name], floor)


@pytest.mark.parametrize("name", ["maskcl", "masks as bool", "memcpy"])
def test_bits_that_differ(timed, name):
    a, b = (torch.rand(SIZE, SIZE, device=device()) > 0.5 for _ in range(2))
    left, right = ops.pack_mask(a), ops.pack_mask(b)
    functions = {
        "maskcl": lambda: ops.popcount(ops.xor_words(left, right)),
        "masks as bool": lambda: (a != b).sum(),
        "memcpy": copy_of(2 * 4 * left.numel()),
    }
    group = "bits that differ between two masks of 4096x4096"
    timed(group, name, functions[name], 2 * 4 * left.numel())


@pytest.mark.parametrize("name", ["maskcl", "threshold, then pack"])
def test_pack_scores(timed, name):
    scores = torch.randn(SIZE, SIZE, device=device())
    functions = {
        "maskcl": lambda: ops.pack_scores(scores),
        "threshold, then pack": lambda: ops.pack_mask(scores > 5e-3),
    }
    timed("pack_scores, 4096x4096", name, functions[name], 4 * scores.numel())
