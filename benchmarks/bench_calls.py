"""What a call of each public op costs before its kernel, beside the same in plain torch.

One element: checks, the choice of the backend and the autograd Function are what is left.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import device
from maskcl.bench import case, cases
from maskcl.bench.case import differentiated

PAIRS = [(op, False) for op in cases()] + [(op, True) for op, made in cases().items() if made.wrt]


@pytest.mark.parametrize("name", ["maskcl", "plain torch"])
@pytest.mark.parametrize(("op", "backward"), sorted(PAIRS))
def test_call(timed, op, backward, name):
    with torch.device(device()):  # not around the timing: every call would pass through it
        call = case(op)
    function = call.ours if name == "maskcl" else call.plain
    if backward:
        function = differentiated(function, call.wrt)
    timed(f"call of {op}, 1 element{', forward + backward' if backward else ''}", name, function)
