"""Moments by class are those of all samples together, however they come."""

from __future__ import annotations

import pytest
import torch

from maskcl.nn.inference.class_sums import ClassSums, pack, unpack


def samples(n: int = 2500, features: int = 7, classes: int = 4, offset: float = 0.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (n,), generator=generator) * 2  # 1, 3, 5 have none
    x = torch.randn(n, features, generator=generator) + labels[:, None]
    return x + offset, labels


def direct(x, labels):
    x = x.double()
    found = labels.unique()
    means = torch.stack([x[labels == c].mean(0) for c in found])
    parts = [x[labels == c] - m for c, m in zip(found, means, strict=True)]
    return found, means, torch.stack([p.T @ p for p in parts])


@pytest.mark.parametrize("batch", [1, 64, 2500])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("offset", [0.0, -300.0])  # beside which what samples differ by is small
def test_moments_are_those_of_all_samples(batch, by_class, offset):
    x, labels = samples(offset=offset)
    sums = ClassSums(x.shape[1], by_class, x.device)
    for part, y in zip(x.split(batch), labels.split(batch), strict=True):
        sums.add(part, y)
    found = sums.moments()
    wanted, means, scatters = direct(x, labels)
    assert torch.equal(found.labels, wanted)
    assert found.count.tolist() == [float((labels == c).sum()) for c in wanted]
    torch.testing.assert_close(found.mean, means, rtol=1e-6, atol=1e-6)
    scatters = scatters if by_class else scatters.sum(0)
    # Products of float32: an element is as exact as the diagonal's size lets it be.
    atol = 2e-5 * float(scatters.diagonal(dim1=-2, dim2=-1).min())
    torch.testing.assert_close(found.scatter, scatters, rtol=0, atol=atol)


def test_nothing_added_is_no_class():
    found = ClassSums(3, True, torch.device("cpu")).moments()
    assert found.labels.numel() == 0
    assert found.scatter.shape == (0, 3, 3)


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (2, 3, 4, 4), (0, 0)])
def test_a_packed_matrix_comes_back(shape):
    matrix = torch.randn(shape, dtype=torch.float64)
    matrix = matrix + matrix.mT
    packed = pack(matrix) if shape[-1] else matrix.new_zeros(0)
    assert packed.shape == (*shape[:-2], shape[-1] * (shape[-1] + 1) // 2)
    assert torch.equal(unpack(packed, shape[-1]), matrix)
