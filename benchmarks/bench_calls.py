"""What a call of each public op costs before its kernel, beside the same in plain torch.

One element: checks, the choice of the backend and the autograd Function are what is left.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.calls import calls, differentiated
from benchmarks.conftest import device

PAIRS = [(op, False) for op in calls()] + [(op, True) for op, call in calls().items() if call.wrt]


@pytest.mark.parametrize("name", ["maskcl", "plain torch"])
@pytest.mark.parametrize(("op", "backward"), sorted(PAIRS))
def test_call(timed, op, backward, name):
    with torch.device(device()):  # not around the timing: every call would pass through it
        call = calls()[op]
    function = call.ours if name == "maskcl" else call.plain
    if backward:
        function = differentiated(function, call.wrt)
    timed(f"call of {op}, 1 element{', forward + backward' if backward else ''}", name, function)
