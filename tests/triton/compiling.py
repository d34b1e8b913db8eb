"""Kernels compiled to a cubin with no GPU: what launchers launch, and what it costs.

The launchers run with their kernels replaced by recorders, so what is compiled is what they launch:
types, constants, tile sizes, alignment and options.
"""

import csv
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks import resources as known
from maskcl.triton import _compat

SHARED_BYTES = 8192
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
OPTION_NAMES = {*_compat.OPTIONS, "num_stages"}

Launch = tuple[Any, tuple[Any, ...], dict[str, Any]]


@dataclass
class Recorder:
    """Stands for a kernel: keeps the arguments of each launch and launches nothing."""

    kernel: Any
    launches: list[Launch]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def kernels(module: ModuleType) -> list[str]:
    """Names of the kernels that ``module`` launches."""
    return [name for name in vars(module) if name.endswith("_kernel")]


def record(monkeypatch: pytest.MonkeyPatch, modules: Iterable[ModuleType]) -> list[Launch]:
    """The list in which the launches of these modules land from here on."""
    recorded: list[Launch] = []
    monkeypatch.setattr(_compat, "INTERPRETED", True)
    for module in modules:
        for name in kernels(module):
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), recorded))
    return recorded


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    assert isinstance(value, int)
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def source(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ASTSource:
    """What Triton's own launcher would compile for these arguments.

    That is with the alignment of pointers and integers to 16, and with an integer 1 as a constant,
    unless the kernel asks for neither. None is a constant, too.
    """
    constants = {name: value for name, value in kwargs.items() if name not in OPTION_NAMES}
    names = kernel.arg_names[: len(args)]
    general = {p.name for p in kernel.params if p.do_not_specialize}
    ones = {
        name: value
        for name, value in zip(names, args, strict=True)
        if value is None or (isinstance(value, int) and value == 1 and name not in general)
    }
    given = {name: value for name, value in zip(names, args, strict=True) if name not in ones}
    signature = {name: _type(value) for name, value in given.items()}
    signature |= dict.fromkeys((*ones, *constants), "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names if name in signature}
    aligned = {
        (at,): [["tt.divisibility", 16]]
        for at, value in enumerate(args)
        if isinstance(value, Tensor)
        or (isinstance(value, int) and value % 16 == 0 and names[at] not in general)
    }
    return ASTSource(fn=kernel, signature=signature, constexprs=ones | constants, attrs=aligned)


def compile_one(launch: Launch, capability: int) -> Any:
    """The compiled kernel of a launch, with its stages in ``asm``."""
    kernel, args, kwargs = launch
    options = {name: kwargs[name] for name in OPTION_NAMES if name in kwargs}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source(kernel, args, kwargs), target=target, options=options)


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack, shared and local bytes as cuobjdump prints them."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    text = known.dumped(path)
    usage = {name: int(number) for name, number in re.findall(r"\b([A-Z]+):(\d+)", text)}
    assert {"REG", "STACK", "LOCAL"} <= usage.keys(), text
    return usage


def described(launch: Launch) -> str:
    """A kernel with what it is compiled for: ``kernel(fp32 i32:16 ..) BLOCK=1024 ..``."""
    kernel, args, kwargs = launch
    made = source(*launch)
    aligned = {at for (at,) in made.attrs}
    types = [made.signature[name].removeprefix("*") for name in kernel.arg_names[: len(args)]]
    shown = [
        ("1" if t == "constexpr" else t) + (":16" if at in aligned and t[0] == "i" else "")
        for at, t in enumerate(types)
    ]
    constants = " ".join(f"{name}={value}" for name, value in kwargs.items())
    constants = constants.replace(" enable_fp_fusion=False", "")
    return f"{kernel.fn.__name__.strip('_')}({' '.join(shown)}) {constants}"


def compare(launch: Launch, capability: int, built: Any, numbers: dict[str, int]) -> list[str]:
    """How a kernel differs from the checked-in table; where that is made anew, a row of it."""
    threads = 32 * built.metadata.num_warps
    numbers = {**numbers, "SHARED": built.metadata.shared}
    filled = known.occupancy(numbers["REG"], numbers["SHARED"], str(capability), threads)
    stack = numbers["STACK"] + numbers["LOCAL"]
    row = known.Usage(
        described(launch), str(capability), numbers["REG"], stack, numbers["SHARED"], filled
    )
    if path := os.environ.get(known.COLLECT):
        with open(path, "a", newline="") as file:
            csv.writer(file).writerow(vars(row).values())
        return []
    return known.differences("triton", triton.__version__, [row], whole=False)


def compile_all(
    launches: list[Launch],
    expected: int,
    folder: Path,
    capabilities: tuple[int, ...] = (80, 90),
    shared: int = SHARED_BYTES,
    stack: int = 0,
) -> None:
    """Compile each distinct launch, of which ``expected`` are wanted, for the targets.

    No kernel may spill registers, use atomics on global memory, or more than ``shared`` bytes of
    shared memory, or more than ``stack`` of a stack, for calls.
    """
    distinct = {(launch[0].fn.__name__, source(*launch).hash()): launch for launch in launches}
    assert len(distinct) == expected
    for (name, _), launch in distinct.items():
        for capability in capabilities:
            built = compile_one(launch, capability)
            assert built.asm["cubin"][:4] == b"\x7fELF"
            assert f"sm_{capability}" in built.asm["ptx"]
            atomics = re.findall(r"^\s*(?:@\S+ )?((?:atom|red)\.\S+)", built.asm["ptx"], re.M)
            assert all(".shared" in atomic for atomic in atomics), f"{name}: {atomics}"
            assert built.metadata.shared <= shared, name
            usage = resources(built.asm["cubin"], folder)
            assert usage["LOCAL"] == 0 and usage["STACK"] <= stack, (
                f"{name} spills: {usage} {launch[2]}"
            )
            differences = compare(launch, capability, built, usage)
            assert not differences, (differences, "meant? python -m benchmarks.resources --write")
