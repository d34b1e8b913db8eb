"""One rule decides what a threshold keeps, in every op and backend: torch's own comparison.

torch rounds a Python number to the dtype of the tensor that it is compared with. Here that tensor
is the scores, whatever the weight's dtype is.
"""

from __future__ import annotations

import pytest
import torch

from maskcl import backends, ops
from tests.ops.conftest import with_reference

backend = with_reference()
PAIRS = [  # of a weight and of its scores
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
    (torch.float64, torch.float32),
    (torch.float64, torch.float64),
]
# Above and below what each dtype makes of them; 0 in float32; infinite in float16 and in all.
THRESHOLDS = [0.1, 5e-3, 0.3, 1 / 3, 0.7, 1e-3, 2.2, 0.0, 1e-50, 1e6, 1e39]


def scores_around(threshold: float, dtype: torch.dtype, interpreted: bool = False) -> torch.Tensor:
    """What the dtype makes of the threshold and its neighbours, of both signs; zeros, NaN, ..."""
    t = torch.tensor([threshold], dtype=torch.float64).to(dtype)
    ends = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    near = torch.cat([t, torch.nextafter(t, ends[:1]), torch.nextafter(t, ends[1:])])
    rest = torch.tensor([0.0, -0.0, torch.nan, 1.0, torch.finfo(dtype).tiny], dtype=dtype)
    found = torch.cat([near, -near, rest, -rest, ends])
    if interpreted and dtype == torch.bfloat16:  # Triton's interpreter loses its subnormals
        found = found[(found.abs() >= torch.finfo(dtype).tiny) | (found == 0) | found.isnan()]
    return found


def interpreted(backend: str, device: str) -> bool:
    return backend == "triton" and device == "cpu"


def masks_of(scores: torch.Tensor, t: float) -> dict[str, torch.Tensor]:
    """By the comparisons of torch, and of nothing else."""
    return {
        "binary": scores > t,
        "inclusive": scores >= t,
        "ternary": (scores > t).float() - ((scores < 0) & ~(scores > t)).float(),
        "ternary_symmetric": (scores > t).float() - (scores < -t).float(),
    }


WORDS = {"inclusive": {"levels": "binary", "inclusive": True}}


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("dtype", "of_scores"), PAIRS, ids=str)
def test_every_op_keeps_what_torch_does(backend, device, dtype, of_scores, threshold):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    scores = scores_around(threshold, of_scores, interpreted(backend, device)).to(device)
    ones = torch.ones_like(scores, dtype=dtype)
    for name, mask in masks_of(scores, threshold).items():
        options = WORDS.get(name, {"levels": name})
        mask = mask.to(dtype)
        weight = ones.clone().requires_grad_()
        kept = ops.piggyback_weight(weight, scores, threshold, **options)
        assert torch.equal(kept, mask), name
        assert torch.equal(torch.autograd.grad(kept.sum(), weight)[0], mask), name
        words = ops.pack_scores(scores, threshold, **options)
        assert torch.equal(words, ops.pack_mask(mask, ternary=name.startswith("ternary"))), name
        for rows in (1, 300):  # of few rows another kernel, of many the scores are read as bits
            x = torch.ones(rows, 1, dtype=dtype, device=device, requires_grad=True)
            column = [t.detach()[:, None].clone() for t in (weight, scores)]
            y = ops.piggyback_linear(x, column[0].requires_grad_(), column[1], threshold, **options)
            assert torch.equal(y, mask.expand(rows, -1)), name
            dw = torch.autograd.grad(y[0].sum(), column[0])[0]
            assert torch.equal(dw[:, 0], mask), name


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dtype", sorted({s for _, s in PAIRS}, key=str), ids=str)
def test_masks_alone_keep_what_torch_does(backend, device, dtype, threshold):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    scores = scores_around(threshold, dtype, interpreted(backend, device)).to(device)
    masks = {name: mask.to(dtype) for name, mask in masks_of(scores, threshold).items()}
    assert torch.equal(ops.binarize(scores, threshold), masks["binary"])
    assert torch.equal(ops.binarize(scores, threshold, inclusive=True), masks["inclusive"])
    assert torch.equal(ops.ternarize(scores, threshold), masks["ternary"])
    symmetric = ops.ternarize(scores, threshold, symmetric=True)
    assert torch.equal(symmetric, masks["ternary_symmetric"])


def test_scores_that_are_neither_float32_nor_the_weight_s_are_widened_or_refused():
    """Past the public ops, which refuse them: float16 scores of a float32 weight are right too."""
    scores = scores_around(0.1, torch.float16)
    ones = torch.ones(scores.shape)
    for name in ("cpp", "reference"):
        if backends.BACKENDS[name].absent is None:
            with backends.use_backend(name):
                found = backends.select("masked_weight", ones)(
                    ones, scores, None, "binary", 0.1, False, 1.0
                )
            assert torch.equal(found, (scores > 0.1).float())
    if backends.BACKENDS["cpp"].absent is None:
        with pytest.raises(RuntimeError, match="scores is Double, wanted Float or the weight's"):
            torch.ops.maskcl.masked_weight(ones, scores.double(), None, "binary", 0.1, False, 1.0)
