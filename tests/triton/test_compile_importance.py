"""The kernels of importance compiled to a cubin with no GPU; see compiling.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton.language", reason="Triton is not installed")

from compiling import compile_all, compile_one, kernels, record

from maskcl.triton import _linear_importance, _products, importance

# Shared memory of a program by compute capability.
SHARED = {80: 166912, 90: _products.LARGE_SHARED}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(_linear_importance, "_wide", lambda x: False)  # of the interpreter alone
    return record(monkeypatch, (importance, _linear_importance, _products))


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def test_every_kernel_is_compiled_below() -> None:
    assert set(kernels(importance) + kernels(_linear_importance)) == {
        "_accumulate_kernel",
        "_penalty_kernel",
        "_sum_kernel",
        "_importance_kernel",
    }


def test_lists(launches: list[Any], tmp_path: Path) -> None:
    omega, half = torch.empty(5000), torch.empty(5000, dtype=torch.bfloat16)
    importance.mas_accumulate_([omega], [half], 1.0, 1.0, False)
    importance.mas_accumulate_([omega], [half.expand(16, -1)], 1.0, 1.0, True)
    importance.mas_penalty_grads_([half], [half], [half], [omega], omega[0], 1.0, True)
    compile_all(launches, 4, tmp_path)


def test_one_pass_of_wide_loads(launches: list[Any]) -> None:
    one = [torch.empty(5000)]
    importance.mas_penalty_grads_(one, one, one, one, None, 1.0, True)
    importance.mas_penalty_grads_(one, one, one, one, None, 1.0, False)
    importance.mas_accumulate_(one, one, 1.0, 1.0, False)
    aside = [torch.empty(5001)[1:]]
    importance.mas_accumulate_(one, aside, 1.0, 1.0, False)
    found = []
    for launch in launches:
        if launch[0].fn.__name__ != "_sum_kernel":
            ptx = compile_one(launch, 90).asm["ptx"]
            found.append((ptx.count("ld.global.v4.b32"), ptx.count("st.global.v4.b32")))
    # A thread has 8 elements of each of gradients, parameters, anchors and importances.
    assert found == [(2 * 4, 2), (2 * 3, 2), (2 * 2, 2), (0, 0)]


@pytest.mark.parametrize("capability", [80, 90], ids=lambda capability: f"sm_{capability}")
def test_linear_importance(
    capability: int, launches: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_linear_importance, "shared_bytes", lambda device: SHARED[capability])
    x, grad = torch.empty(4096, 1024), torch.empty(4096, 2048)
    omega = torch.empty(2048, 1024)
    importance.linear_importance_(omega, x.bfloat16(), grad.bfloat16(), 1.0, False)
    # As an unfolded convolution has them, and so few that their sum is split.
    x, grad = (torch.empty(16, n, 196).transpose(1, 2) for n in (144, 32))
    importance.linear_importance_(omega[:32, :144], x, grad, 1.0, True)
    assert launches[1][2]["PARTIAL"]
    # One product, its partial sums, and their sum.
    compile_all(launches, 3, tmp_path, (capability,), SHARED[capability])
