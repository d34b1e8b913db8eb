"""The kernels of an optimizer's step compiled to cubins for sm_80 and sm_90; see compiling.py."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.language", reason="Triton is not installed")

from compiling import compile_all, kernels, record

from maskcl.triton import _step_counts, _steps, update

MODULES = (update, _step_counts)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return record(monkeypatch, MODULES)


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def test_every_kernel_is_compiled_below() -> None:
    found = {*kernels(_steps), *kernels(_step_counts)}
    found -= {"skips", "tile_of", "column_of", "index_of", "splitmix"} | {
        name for name in found if name.startswith("_")
    }
    assert found == {"sgd_kernel", "adam_kernel", "count_kernel", "square_kernel", "root_kernel"}


def _list(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]:
    params = [torch.zeros(64, 32, 3, 3, dtype=dtype), torch.zeros(64, dtype=dtype)]
    bits = [torch.zeros(n, 1, dtype=torch.int64) for n in (64, 32, 1)]
    return params, [bits[0], bits[0]], [bits[1], bits[2]], [1, 1]


PACE = [[0.1] * 2, [0.1] * 2, [1.5] * 2]
CALLS = 16  # bytes of stack: the rare path of a correctly rounded division or root is a call
ONE = torch.ones(())
ALL, NONE = (ONE, ONE, ONE, ONE, 1.0), (None, None, None, None, 0.0)
# The first fits int32, the second does not.
DRAWN = [(ONE, 3, [0, 1 << 40]), (ONE.double(), -(2**63), [1 << 40, 5])]
KINDS = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)]
KINDS += [(torch.float16, torch.float32)]


@pytest.mark.parametrize(("dtype", "state"), KINDS, ids=str)
def test_sgd(dtype: torch.dtype, state: torch.dtype, launches: list[Any], tmp_path: Path) -> None:
    params, *sides = _list(dtype)
    buffers = [p.to(state) for p in params]
    cases = itertools.product((True, False), ([], buffers), (ALL, NONE))
    for exact, momenta, scalars in cases:
        how = 0.9, 0.0, exact, exact, not exact
        update.sgd_update_(params, params, momenta, *sides, exact, *PACE, *how, *scalars)
    how = 0.9, 0.0, False, False, False
    for rounding in DRAWN if dtype is torch.bfloat16 else []:
        update.sgd_update_(params, params, buffers, *sides, True, *PACE, *how, *NONE, *rounding)
    count = 8 + len(DRAWN) * (dtype is torch.bfloat16)
    compile_all(launches, count, tmp_path, stack=CALLS)


@pytest.mark.parametrize(("dtype", "state"), KINDS, ids=str)
def test_adam(dtype: torch.dtype, state: torch.dtype, launches: list[Any], tmp_path: Path) -> None:
    params, *sides = _list(dtype)
    moments = [p.to(state) for p in params]
    steps = [torch.zeros(()), torch.zeros((), dtype=torch.float64)]
    for exact, scalars in itertools.product((True, False), (ALL, NONE)):
        how = 0.9 if exact else 0.4, 0.999, 1e-8, exact, exact
        lists = params, params, moments, moments, steps
        update.adam_update_(*lists, *sides, exact, *PACE, *how, *scalars)
    # Each is two launches. The first counts the steps, which no draw changes.
    for rounding in DRAWN if dtype is torch.bfloat16 else []:
        update.adam_update_(*lists, *sides, True, *PACE, *how, *NONE, *rounding)
    count = 8 + len(DRAWN) * (dtype is torch.bfloat16)
    compile_all(launches, count, tmp_path, stack=CALLS)


def test_norm(launches: list[Any], tmp_path: Path) -> None:
    for dtype, scale in ((torch.float32, ONE), (torch.bfloat16, None)):
        grads, *sides = _list(dtype)
        update.unprotected_norm(grads, *sides, True, scale)
    compile_all(launches, 3, tmp_path, stack=CALLS)
