"""Every Triton kernel compiled to a cubin for sm_80 and sm_90, with no GPU; see compiling.py.

No kernel may spill registers, and the static shared memory (the reductions' scratch) must fit
beside several programs of one multiprocessor.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.language", reason="Triton is not installed")

from compiling import compile_all, compile_one, kernels, record

from maskcl.reference.grad_clamp import AGGREGATIONS, RULES
from maskcl.reference.masked_forward import ACTIVATIONS
from maskcl.triton import gate, grad_clamp, masked_forward

MODULES = (gate, grad_clamp, masked_forward)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    return record(monkeypatch, MODULES)


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def test_every_kernel_is_compiled_below() -> None:
    found = {name for module in MODULES for name in kernels(module)}
    assert found == {
        "_hat_gate_kernel",
        "_hat_gate_backward_kernel",
        "_hat_gates_kernel",
        "_add_term_kernel",
        "_sparsity_parts_kernel",
        "_hat_sparsity_kernel",
        "_hat_sparsity_backward_kernel",
        "_forward_kernel",
        "_backward_kernel",
        "_sum_parts_kernel",
        "_protect_kernel",
        "_soft_kernel",
    }


def test_gate(launches: list[Any], tmp_path: Path) -> None:
    units, scale = torch.zeros(4000), torch.tensor(1.0)
    gate.hat_gate(units, scale)
    for recipe in (False, True):
        for max_scale in (0.0, 400.0):
            gate.hat_gate_backward(units, units, units, scale, max_scale, 50.0, recipe)
    gate.hat_gates(units, scale, units, 1e-9, 0.75)
    parts = [units[:2000], units[:0]]
    gate.hat_gates_backward(parts, scale, units, scale, units, [2000, 2000], 0.75, 0.0, 50.0, False)
    gate.hat_sparsity(units, units > 0)
    gate.hat_sparsity_backward(scale, units, units > 0)
    # The gradient of all gates ends in that of one, and both functions of the sparsity start with
    # the same partial sums.
    compile_all(launches, 1 + 4 + 2 + 3, tmp_path)


WIDE, IMAGE = (512, 2048), (32, 64, 14, 14)


def _forward_and_backward(
    shape: tuple[int, ...], activation: str, dtype: torch.dtype, from_output: bool = False
) -> None:
    x = torch.zeros(shape, dtype=dtype)
    mask = torch.zeros(shape[1])
    bias = None if from_output else mask
    masked_forward.masked_activation(x, mask, bias, activation, 0.01, 1)
    rest = (activation, 0.01, 1, from_output, True, bias is not None)
    masked_forward.masked_activation_backward(x, x, mask, bias, *rest)


def test_masked_activation_with_channels_side_by_side(launches: list[Any], tmp_path: Path) -> None:
    for activation in ACTIVATIONS:
        _forward_and_backward(WIDE, activation, torch.bfloat16)
    # One target: the other tests compile these kernels, with some activations, for both.
    compile_all(launches, 2 * len(ACTIVATIONS) + 1, tmp_path, (90,))


def test_masked_activation_with_channels_apart(launches: list[Any], tmp_path: Path) -> None:
    for activation in ("relu", "gelu", "gelu_tanh"):
        _forward_and_backward(IMAGE, activation, torch.float16)
    compile_all(launches, 2 * 3 + 1, tmp_path)


@pytest.mark.parametrize("shape", [WIDE, IMAGE], ids=["side by side", "apart"])
def test_masked_activation_from_output(
    shape: tuple[int, ...], launches: list[Any], tmp_path: Path
) -> None:
    for activation in ("relu", "tanh"):
        _forward_and_backward(shape, activation, torch.float32, from_output=True)
    compile_all(launches, 2 * 2 + 1, tmp_path)


def _weights(dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]:
    grads = [torch.zeros(64, 32, 3, 3, dtype=dtype), torch.zeros(64, dtype=dtype)]
    bits = [torch.zeros(n, 1, dtype=torch.int64) for n in (64, 32, 1)]
    return grads, [bits[0], bits[0]], [bits[1], bits[2]], [1, 1]


@pytest.mark.parametrize("exact", [True, False])
def test_protection(exact: bool, launches: list[Any], tmp_path: Path) -> None:
    grads, outs, ins, groups = _weights(torch.float32 if exact else torch.bfloat16)
    for rule in RULES:
        grad_clamp.clamp_grads_(grads, outs, ins, groups, exact, rule, [0.5, 0.5], 1)
    grad_clamp.restore_protected_(grads, grads, outs, ins, groups, exact)
    compile_all(launches, len(RULES) + 1, tmp_path)


def test_rule_hat_reads_no_gradient(launches: list[Any]) -> None:
    grads, outs, ins, groups = _weights(torch.float32)
    for rule in ("hat", "const"):
        grad_clamp.clamp_grads_(grads, outs, ins, groups, True, rule, [0.5, 0.5], 1)
    loads = []
    for launch in launches:
        built = compile_one(launch, 80)
        loads.append(set(re.findall(r"ld\.global\S*(b\d+)", built.asm["ptx"])))
    # The table and the bits are 64 bits wide, a gradient 32.
    assert loads == [{"b64"}, {"b64", "b32"}]


def test_soft_protection(launches: list[Any], tmp_path: Path) -> None:
    grads, outs, ins, groups = _weights(torch.float16)
    outs, ins = ([side[:, 0].float() for side in sides] for sides in (outs, ins))
    for aggregation in AGGREGATIONS:
        grad_clamp.clamp_grads_soft_(grads, outs, ins, groups, aggregation)
    compile_all(launches, len(AGGREGATIONS), tmp_path)
