"""The model's launches are those that happen, for the cases of every op."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks import launches, passes_of_bits, sanitize
from tests.cuda.emulator import device


def predicted(name, arguments) -> Counter[str]:
    """Names of our kernels; what is empty launches nothing, whatever its passes are."""
    found = passes_of_bits.OF[name](*arguments)
    kernels = [p.kernel.split(": ")[1].split("<")[0] for p in found if p.kernel]
    return Counter(kernels)


def happened(name, arguments) -> Counter[str]:
    with launches._kernels() as found:
        getattr(torch.ops.maskcl, name)(*arguments)
    return Counter({kernel: count for (_, kernel), count in found.items()})


def is_empty(arguments) -> bool:
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    return any(t.numel() == 0 for t in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cases", sanitize.CASES, ids=lambda cases: cases.__name__)
def test_launches(cases, dtype):
    device.set_order("forward")
    for name, *arguments in cases(dtype):
        if not is_empty(arguments):
            wanted = predicted(name, arguments)
            shapes = [getattr(a, "shape", a) for a in arguments]
            assert happened(name, arguments) == wanted, (name, shapes)
