"""The product with activation and mask in its epilogue, compiled with no GPU; see compiling.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton.language", reason="Triton is not installed")

from compiling import compile_all, kernels, record, source

from maskcl.triton import _linear, _products

# Shared memory of a program by compute capability.
SHARED = {80: 166912, 90: _products.LARGE_SHARED}
ROWS = {torch.bfloat16: (16, 64, 256, 4096), torch.float16: (4096,), torch.float32: (16, 4096)}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(_linear, "_wide", lambda x: False)  # of the interpreter alone
    monkeypatch.setattr(_linear, "PROGRAMS", 1)
    return record(monkeypatch, (_linear,))


def test_every_kernel_is_compiled_below() -> None:
    assert kernels(_linear) == ["_linear_kernel"]


@pytest.mark.parametrize("capability", SHARED, ids=lambda capability: f"sm_{capability}")
@pytest.mark.parametrize("dtype", ROWS, ids=str)
def test_linear(
    dtype: torch.dtype,
    capability: int,
    launches: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_linear, "shared_bytes", lambda device: SHARED[capability])
    mask = torch.zeros(4096)
    for rows in ROWS[dtype]:
        for ins in (4096, 784, 1000):  # full tiles of k, aligned rows, rows that are not
            x, weight = torch.zeros(rows, ins, dtype=dtype), torch.zeros(4096, ins, dtype=dtype)
            _linear.masked_linear(x, weight, mask.to(dtype), mask, "relu", 0.0)
    for activation in ("tanh", "leaky_relu"):
        _linear.masked_linear(x, weight, None, mask, activation, 0.1)
    distinct = {source(*launch).hash(): launch for launch in launches}
    assert len(distinct) >= 2 + len(ROWS[dtype])
    compile_all(launches, len(distinct), tmp_path, (capability,), SHARED[capability])
