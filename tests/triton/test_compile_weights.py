"""The kernels of weight_mask and bitmask compiled to a cubin with no GPU; see compiling.py."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton.language", reason="Triton is not installed")

from compiling import compile_all, compile_one, kernels, record, source

from maskcl.reference.weight_mask import LEVELS
from maskcl.triton import _kth, _products, _vector, bitmask, weight_mask

MODULES = (weight_mask, bitmask, _products, _vector, _kth)
# Shared memory of a program by compute capability.
SHARED = {80: 166912, 90: _products.LARGE_SHARED}
OUTS = INS = 4096


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setattr(_products, "_wide", lambda x: False)  # of the interpreter alone
    return record(monkeypatch, MODULES)


@pytest.fixture(params=(80, 90), ids=lambda capability: f"sm_{capability}")
def capability(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """One of the GPUs, whose shared memory the tiles depend on."""
    monkeypatch.setattr(_products, "shared_bytes", lambda device: SHARED[request.param])
    return request.param


@pytest.fixture(autouse=True)
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def _select(levels: str) -> tuple[Any, ...]:
    return torch.tensor(0.5) if levels == "topk" else None, levels, 0.25, False, 3.0


def _compile(launches: list[Any], expected: int, folder: Path, capability: int) -> None:
    compile_all(launches, expected, folder, (capability,), SHARED[capability])


def test_every_kernel_is_compiled_below() -> None:
    assert {name for module in MODULES for name in kernels(module)} == {
        "_weight_mask_kernel",
        "_masked_weight_kernel",
        "_pack_kernel",
        "_unpack_kernel",
        "_combine_kernel",
        "_popcount_kernel",
        "_embedding_kernel",
        "_masked_product_kernel",
        "_masked_vector_kernel",
        "_weight_grad_kernel",
        "_sum_splits_kernel",
        "_count_kernel",
        "_choose_kernel",
    }


def test_elementwise(launches: list[Any], tmp_path: Path) -> None:
    weight, scores = torch.empty(64, 64, dtype=torch.bfloat16), torch.empty(64, 64)
    for levels in LEVELS:
        select = _select(levels)
        weight_mask.weight_mask(scores, *select)
        weight_mask.masked_weight(weight, scores, *select)
        weight_mask.masked_weight_backward(weight, weight, scores, *select, True, True)
    compile_all(launches, 3 * len(LEVELS), tmp_path)


def test_words(launches: list[Any], tmp_path: Path) -> None:
    weight, scores = torch.empty(50, 70, dtype=torch.float16), torch.empty(50, 70)
    for ternary in (False, True):
        words = torch.empty((2, 110) if ternary else (110,), dtype=torch.int32)
        bitmask.pack_mask(weight.double(), ternary)
        bitmask.pack_scores(scores, *_select("ternary" if ternary else "topk")[:4])
        bitmask.unpack_mask(words, [50, 70], torch.bfloat16)
        bitmask.packed_weight(weight, words)
        bitmask.packed_embedding(torch.zeros(9, dtype=torch.int64), weight, words)
    for how in ("and", "or", "xor", "andnot"):
        bitmask.combine_words(words, words, how)
    bitmask.popcount_words(words)
    compile_all(launches, 2 * 5 + 4 + 1, tmp_path)


def test_kth_largest(launches: list[Any], tmp_path: Path) -> None:
    _kth.kth_largest(torch.empty(10**6, dtype=torch.bfloat16), 1000, True)
    _kth.kth_largest(torch.empty(10**6), 1000, False)
    compile_all(launches, 2 * 4 + 2, tmp_path, shared=16384)


def _layer(dtype: torch.dtype, outs: int = OUTS, ins: int = INS) -> tuple[Tensor, Tensor]:
    return torch.empty(outs, ins, dtype=dtype), torch.empty(outs, ins)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("ternary", [False, True], ids=["binary", "ternary"])
def test_packed_linear(
    ternary: bool, dtype: torch.dtype, capability: int, launches: list[Any], tmp_path: Path
) -> None:
    weight, _ = _layer(dtype)
    count = weight.numel() // 32
    words = torch.empty((2, count) if ternary else (count,), dtype=torch.int32)
    for batch in (1, 16, 64, 256, 4096):
        bitmask.packed_linear(weight[:batch], weight, words, weight[0])
    # The vector's kernel and the tiles; in bfloat16 two of these split k: their sum, and no bias.
    _compile(launches, 3 if dtype == torch.float32 else 6, tmp_path, capability)


@pytest.mark.slow
@pytest.mark.parametrize("levels", ["binary", "ternary", "topk", "soft"])
def test_piggyback_linear(
    levels: str, capability: int, launches: list[Any], tmp_path: Path
) -> None:
    weight, scores = _layer(torch.bfloat16)
    select = _select(levels)
    for batch in (16, 64, 256):
        x = weight[:batch]
        weight_mask.piggyback_linear(x, weight, scores, None, *select)
        weight_mask.piggyback_linear_backward(x, x, weight, scores, *select, True, False, False)
    launches[:] = [launch for launch in launches if "TILE_K" in launch[2]]
    _compile(launches, 2 * 3, tmp_path, capability)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_large_batches(
    dtype: torch.dtype, capability: int, launches: list[Any], tmp_path: Path
) -> None:
    weight, scores = _layer(dtype)
    for levels in ("binary", "soft") if dtype == torch.bfloat16 else ("binary",):
        rest = (weight, weight, weight, scores, *_select(levels))
        weight_mask.piggyback_linear_backward(*rest, True, False, True)
        weight_mask.piggyback_linear_backward(*rest, False, True, True)
    # The bits and the soft scores of dx, G W, G m and G W together; and the packing.
    _compile(launches, 1 + 3 * (2 if dtype == torch.bfloat16 else 1), tmp_path, capability)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_rows_that_are_not_aligned(
    dtype: torch.dtype, capability: int, launches: list[Any], tmp_path: Path
) -> None:
    weight, scores = _layer(dtype, 999, 1001)
    for batch, levels in ((1, "binary"), (15, "soft"), (300, "binary")):
        x, grad = (torch.empty(batch, n, dtype=dtype) for n in (1001, 999))
        rest = (weight, scores, *_select(levels), True, True, True)
        weight_mask.piggyback_linear_backward(grad, x, *rest)
    launches[:] = [launch for launch in launches if "TILE_K" in launch[2]]
    kinds = {(launch[0].fn.__name__, launch[2]["LEVELS"]) for launch in launches}
    assert len(kinds) == 5
    _compile(launches, len(kinds), tmp_path, capability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_layer_of_one_unit(dtype: torch.dtype, launches: list[Any], tmp_path: Path) -> None:
    for outs, ins in ((1, 64), (64, 1), (1, 1)):
        weight, scores = _layer(dtype, outs, ins)
        for shape, batch in itertools.product(((2,), (2, 2)), (1, 5)):
            words, x = torch.empty(shape, dtype=torch.int32), torch.empty(batch, ins, dtype=dtype)
            bitmask.packed_linear(x, weight, words, weight[:, 0])
        x, grad = (torch.empty(5, n, dtype=dtype) for n in (ins, outs))
        for levels in ("binary", "ternary"):
            rest = (weight, scores, *_select(levels), True, True, True)
            weight_mask.piggyback_linear_backward(grad, x, *rest)
    distinct = {source(*launch).hash(): launch for launch in launches}
    for launch in distinct.values():
        assert compile_one(launch, 80).asm["cubin"]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("levels", ["bits", "binary", "soft"])
def test_the_masked_weight_goes_to_the_tensor_cores_from_registers(
    levels: str,
    transposed: bool,
    launches: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_products, "shared_bytes", lambda device: SHARED[90])
    weight, scores = _layer(torch.bfloat16)
    source = _products.Source(scores, None, levels, 0.25, False, 3.0)
    if levels == "bits":
        source = _products.from_words(torch.empty(weight.numel() // 32, dtype=torch.int32))
    _products.masked_product(weight, weight, source, None, transposed)
    built = compile_one(launches[0], 90)
    loop = built.asm["ttgir"].split("scf.for", 1)[1].split("scf.yield", 1)[0]
    # W's tile is read from shared memory once, as the operand that it becomes, and never written.
    assert re.search(r"local_load .*-> tensor<128x64xbf16, #ttg.dot_op", loop)
    assert "local_alloc" not in loop
    assert "local_store" not in loop
    assert not re.search(r"convert_layout .*tensor<128x64xbf16", loop)
    assert built.asm["ptx"].count("wgmma.mma_async") >= 4
