"""Every Triton kernel compiled to a cubin for sm_80 and sm_90, with no GPU.

The launchers run with their kernels replaced by recorders, so what is compiled is what they launch:
types, constants, tile sizes, alignment and options. No kernel may spill registers, and the static
shared memory (the reductions' scratch) must fit beside several programs of one multiprocessor.
"""

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.language", reason="Triton is not installed")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from maskcl.reference.grad_clamp import AGGREGATIONS, RULES
from maskcl.reference.masked_forward import ACTIVATIONS
from maskcl.triton import _compat, gate, grad_clamp, masked_forward

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED_BYTES = 8192
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
}
OPTION_NAMES = set(_compat.OPTIONS)


@dataclass
class Recorder:
    """Stands for a kernel: keeps the arguments of each launch and launches nothing."""

    kernel: Any
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def _kernels(module: ModuleType) -> list[str]:
    return [name for name in vars(module) if name.endswith("_kernel")]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    recorded: list[Any] = []
    monkeypatch.setattr(_compat, "INTERPRETED", True)
    for module in (gate, grad_clamp, masked_forward):
        for name in _kernels(module):
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), recorded))
    return recorded


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int)
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _source(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ASTSource:
    """What Triton's own launcher would compile for these arguments, 16-byte alignment included."""
    constants = {name: value for name, value in kwargs.items() if name not in OPTION_NAMES}
    names = kernel.arg_names[: len(args)]
    signature = {name: _type(value) for name, value in zip(names, args, strict=True)}
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, value in enumerate(args)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0)
    }
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)


def _resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack, shared and local bytes as cuobjdump prints them."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", text)}
    assert {"REG", "STACK", "LOCAL"} <= usage.keys(), text
    return usage


def _compile_all(
    launches: list[Any], expected: int, folder: Path, capabilities: tuple[int, ...] = (80, 90)
) -> None:
    """Compile each distinct launch, of which ``expected`` are wanted, for the targets."""
    distinct = {}
    for kernel, args, kwargs in launches:
        source = _source(kernel, args, kwargs)
        distinct[kernel.fn.__name__, source.hash()] = source, kwargs
    assert len(distinct) == expected
    for (name, _), (source, kwargs) in distinct.items():
        options = {key: kwargs[key] for key in OPTION_NAMES}
        for capability in capabilities:
            built = triton.compile(
                source, target=GPUTarget("cuda", capability, 32), options=options
            )
            assert built.asm["cubin"][:4] == b"\x7fELF"
            assert f"sm_{capability}" in built.asm["ptx"]
            assert not re.search(r"^\s*(atom|red)\.", built.asm["ptx"], re.M), f"{name}: atomics"
            assert built.metadata.shared <= SHARED_BYTES, name
            usage = _resources(built.asm["cubin"], folder)
            assert usage["STACK"] + usage["LOCAL"] == 0, f"{name} spills: {usage}"


def test_every_kernel_is_compiled_below() -> None:
    found = {name for module in (gate, grad_clamp, masked_forward) for name in _kernels(module)}
    assert found == {
        "_hat_gate_kernel",
        "_hat_gate_backward_kernel",
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
    gate.hat_sparsity(units, units > 0)
    gate.hat_sparsity_backward(scale, units, units > 0)
    # Both functions of the sparsity start with the same partial sums.
    _compile_all(launches, 1 + 4 + 3, tmp_path)


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
    _compile_all(launches, 2 * len(ACTIVATIONS) + 1, tmp_path, (90,))


def test_masked_activation_with_channels_apart(launches: list[Any], tmp_path: Path) -> None:
    for activation in ("relu", "gelu", "gelu_tanh"):
        _forward_and_backward(IMAGE, activation, torch.float16)
    _compile_all(launches, 2 * 3 + 1, tmp_path)


@pytest.mark.parametrize("shape", [WIDE, IMAGE], ids=["side by side", "apart"])
def test_masked_activation_from_output(
    shape: tuple[int, ...], launches: list[Any], tmp_path: Path
) -> None:
    for activation in ("relu", "tanh"):
        _forward_and_backward(shape, activation, torch.float32, from_output=True)
    _compile_all(launches, 2 * 2 + 1, tmp_path)


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
    _compile_all(launches, len(RULES) + 1, tmp_path)


def test_rule_hat_reads_no_gradient(launches: list[Any]) -> None:
    grads, outs, ins, groups = _weights(torch.float32)
    for rule in ("hat", "const"):
        grad_clamp.clamp_grads_(grads, outs, ins, groups, True, rule, [0.5, 0.5], 1)
    loads = []
    for kernel, args, kwargs in launches:
        options = {key: kwargs[key] for key in OPTION_NAMES}
        source = _source(kernel, args, kwargs)
        built = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
        loads.append(set(re.findall(r"ld\.global\S*(b\d+)", built.asm["ptx"])))
    # The table and the bits are 64 bits wide, a gradient 32.
    assert loads == [{"b64"}, {"b64", "b32"}]


def test_soft_protection(launches: list[Any], tmp_path: Path) -> None:
    grads, outs, ins, groups = _weights(torch.float16)
    outs, ins = ([side[:, 0].float() for side in sides] for sides in (outs, ins))
    for aggregation in AGGREGATIONS:
        grad_clamp.clamp_grads_soft_(grads, outs, ins, groups, aggregation)
    _compile_all(launches, len(AGGREGATIONS), tmp_path)
