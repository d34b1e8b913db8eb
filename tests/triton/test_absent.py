"""The kernels' modules without Triton: they import, and a call says what is missing."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys
sys.modules["triton"] = None  # import triton now raises ImportError
import torch
from maskcl.triton import DTYPES, bitmask, gate, grad_clamp, importance, masked_forward
from maskcl.triton import weight_mask
assert torch.float64 not in DTYPES and torch.float32 in DTYPES
x, m = torch.ones(2, 3), torch.ones(3)
bits = torch.ones(2, 1, dtype=torch.int64)
words = torch.ones(1, dtype=torch.int32)
select = (None, "binary", 0.5, False, 1.0)
calls = [
    lambda: gate.hat_gate(m, torch.tensor(1.0)),
    lambda: masked_forward.masked_activation(x, m, None, "relu", 0.0, 1),
    lambda: grad_clamp.clamp_grads_([x], [bits], [bits[:1]], [1], True, "hat", [], 0),
    lambda: weight_mask.piggyback_linear(x, x, x, None, *select),
    lambda: weight_mask.kth_largest(x, 1, False),
    lambda: bitmask.pack_mask(x, False),
    lambda: bitmask.packed_linear(x, x, words, None),
    lambda: importance.mas_accumulate_([x], [x], 1.0, 1.0, False),
    lambda: importance.mas_penalty([x], [x], [x]),
    lambda: importance.linear_importance_(x, x, x, 1.0, False),
]
for call in calls:
    try:
        call()
    except RuntimeError as error:
        assert "Triton cannot be imported" in str(error), error
    else:
        raise AssertionError("no error without Triton")
assert bool((x == 1).all())
"""


def test_modules_import_and_calls_say_what_is_missing() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_cpu_tensors_are_refused_outside_the_interpreter() -> None:
    pytest.importorskip("triton.language", reason="Triton is not installed")
    program = (
        "import torch; from maskcl.triton.gate import hat_gate\n"
        "try: hat_gate(torch.ones(2), torch.tensor(1.0))\n"
        "except RuntimeError as error: assert 'embedding is on the CPU' in str(error), error\n"
        "else: raise AssertionError('ran')"
    )
    ran = subprocess.run(
        [sys.executable, "-c", "import os; os.environ.pop('TRITON_INTERPRET', None)\n" + program],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
