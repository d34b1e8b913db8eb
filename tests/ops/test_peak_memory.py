"""Layers with masked weights on a GPU: no whole masked weight is ever in memory."""

from __future__ import annotations

import pytest
import torch

from maskcl import ops

SIZE = 8192
WEIGHT_BYTES = 2 * SIZE * SIZE  # bfloat16: 128 MB


def peak(run):
    """Bytes at most allocated while ``run`` runs for the second time, besides what it returns."""
    run()  # cuBLAS takes its workspace
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = run()
    torch.cuda.synchronize()
    returned = sum(t.numel() * t.element_size() for t in results)
    return torch.cuda.max_memory_allocated() - before - returned


@pytest.fixture
def layer(backend, device):
    """x of a number of rows, weight and scores."""
    if device != "cuda":
        pytest.skip("counts the bytes that a GPU's allocator gives out")
    weight = torch.randn(SIZE, SIZE, device=device, dtype=torch.bfloat16)
    scores = torch.randn(SIZE, SIZE, device=device)
    return lambda rows: torch.randn(rows, SIZE, device=device).bfloat16(), weight, scores


@pytest.mark.parametrize("rows", [4, 64])
def test_packed_linear(layer, rows):
    inputs, weight, scores = layer
    x, words = inputs(rows), ops.pack_scores(scores)
    assert peak(lambda: [ops.packed_linear(x, weight, words)]) < WEIGHT_BYTES / 2


def test_piggyback_linear(layer):
    inputs, weight, scores = layer
    x = inputs(64).requires_grad_()
    scores.requires_grad_()
    assert peak(lambda: [ops.piggyback_linear(x, weight, scores)]) < WEIGHT_BYTES / 2
    y = ops.piggyback_linear(x, weight, scores)
    grad = torch.randn_like(y)

    def backward():
        return torch.autograd.grad(y, [x, scores], grad, retain_graph=True)

    assert peak(backward) < WEIGHT_BYTES / 2
