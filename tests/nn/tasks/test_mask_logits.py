"""Logits of classes that are not allowed: finite, and without a part in anything."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from maskcl.nn import mask_logits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_masked_classes_have_no_part_in_a_softmax_or_a_loss(dtype, scale):
    logits = (scale * torch.randn(6, 5)).to(dtype).requires_grad_()
    allowed = torch.tensor([True, False, True, True, False])
    masked = mask_logits(logits, allowed)
    assert masked.dtype == dtype
    assert bool(masked.isfinite().all())
    assert bool((masked.softmax(1)[:, ~allowed] == 0).all())
    torch.testing.assert_close(
        masked.softmax(1)[:, allowed], logits[:, allowed].softmax(1), rtol=0, atol=0
    )
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = F.cross_entropy(masked, torch.tensor([0, 2, 3])[targets])
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, allowed], targets))
    assert bool(loss.isfinite())
    loss.backward()
    assert bool(logits.grad.isfinite().all())
    assert bool((logits.grad[:, ~allowed] == 0).all())


def test_rows_may_differ_and_whatever_was_masked_is_gone():
    logits = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])
    masked = mask_logits(logits, torch.tensor([[True, False], [False, True]]))
    assert masked.argmax(1).tolist() == [0, 1]
    assert bool(masked.isfinite().all())


def test_bad_arguments_are_named():
    logits = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"logits are torch\.int64, wanted a floating tensor"):
        mask_logits(logits.long(), torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"allowed is torch\.float32, wanted bool"):
        mask_logits(logits, torch.ones(3))
    for shape in ((2,), (4, 2, 3)):
        with pytest.raises(ValueError, match=r"allowed has shape \[.*wanted one that expands"):
            mask_logits(logits, torch.ones(shape, dtype=torch.bool))
