"""Every op on odd shapes, of every dtype, at every alignment: the reference's results, and the same
bits in whatever order a GPU runs threads and blocks.

The cases are those of benchmarks/sanitize.py, and below what they leave out: long lists, wide
layers, masks of whole numbers. tests/ops has the values that matter and the tight bounds.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks import sanitize
from maskcl import reference
from maskcl.schemas import STEM_OF
from tests.cuda.emulator import device

LIMITS = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float64: 1e-9}
WHOLE = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
MIXED = 1e-5  # float64 weights of float32 scores
LIBC = ctypes.CDLL(None)
CASES = {cases.__name__: cases for cases in sanitize.CASES}


def to_dtype(arguments, dtype):
    def change(a):
        return a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a

    return tree_map(change, arguments)


def unaligned(arguments):
    """The same values, none at an address that a vector of 16 bytes can be read from."""

    def move(a):
        if not isinstance(a, Tensor) or a.numel() == 0:
            return a
        memory = torch.empty(a.untyped_storage().nbytes() // a.element_size() + 1, dtype=a.dtype)
        return torch.as_strided(memory, a.shape, a.stride(), 1).copy_(a)

    return tree_map(move, arguments)


def fenced(arguments):
    """The same values, each tensor's memory ending where the process has none: reads past it end
    the process, and pytest says in which test.
    """

    def move(a):
        if not isinstance(a, Tensor) or a.numel() == 0:
            return a
        used = a.untyped_storage().nbytes()
        room = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, room + mmap.PAGESIZE)
        fence = ctypes.addressof(ctypes.c_char.from_buffer(memory, room))
        assert LIBC.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        count = used // a.element_size()
        inside = torch.frombuffer(memory, dtype=a.dtype, count=count, offset=room - used)
        return torch.as_strided(inside, a.shape, a.stride(), a.storage_offset()).copy_(a)

    return tree_map(move, arguments)


def from_reference(name, arguments):
    function = getattr(getattr(reference, STEM_OF[name]), name)
    return sanitize.outcome(function, arguments, "cpu")


def results(name, arguments):
    """What the emulated op returns and what its arguments have become."""
    returned = getattr(torch.ops.maskcl, name)(*arguments)
    return [t for t in tree_leaves((returned, arguments)) if isinstance(t, Tensor)]


def copied(arguments):
    return tree_map(lambda a: a.clone() if isinstance(a, Tensor) else a, arguments)


def check(name, arguments, limit):
    """In four orders the same bits, the reference's results; at odd addresses and fenced too."""
    first = None
    for order in device.ORDERS[:4]:
        device.set_order(order, 1)
        found = results(name, copied(arguments))
        first = first or found
        for a, b in zip(found, first, strict=True):
            assert torch.equal(bits(a), bits(b)), f"{name}: other bits in {order} order"
    wanted = from_reference(name, arguments)
    sanitize.compare(first, wanted, limit)
    sanitize.compare(results(name, unaligned(arguments)), wanted, limit)
    sanitize.compare(results(name, fenced(arguments)), wanted, limit)


def check_once(name, arguments, limit):
    """Where a call takes long, or a vector would be of another kernel."""
    wanted = from_reference(name, arguments)
    sanitize.compare(results(name, fenced(arguments)), wanted, limit)


def bits(t: Tensor) -> Tensor:
    return t.contiguous().flatten().view(torch.uint8)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("stem", CASES)
def test_results_are_the_references_in_every_order(stem, dtype):
    for name, *arguments in CASES[stem](dtype):
        if dtype == torch.float64:
            check(name, to_dtype(arguments, dtype), LIMITS[dtype])
        else:
            check(name, arguments, LIMITS[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scores_of_another_dtype(dtype):
    """The weight's own, or float32 where the cases above have the weight's."""
    for name, *arguments in sanitize.weight_mask(dtype):
        if dtype == torch.float64:
            check(name, arguments, MIXED)
        else:
            check(name, to_dtype(arguments, dtype), LIMITS[dtype])


def test_what_is_past_the_last_score_is_not_above_a_negative_threshold():
    for count, levels in itertools.product((1, 33, 1000), ("binary", "ternary")):
        check("pack_scores", (torch.randn(count), None, levels, -0.5, False), 0)


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_lists_longer_than_a_kernels_parameters(dtype):
    """More tensors than 4 KB of parameters have room for, and than 32 KB have."""
    for count in (80, 600):
        shapes = [(3, 8), (2, 5), (1, 16), (0, 3)] * (count // 4)
        made = [torch.randn(s).to(dtype) for s in shapes]
        others = [torch.randn(s).to(dtype) for s in shapes]
        omegas = to_dtype([torch.rand(s) for s in shapes], reference.gate.compute_dtype(dtype))
        out = [torch.randint(0, 8, (s[0], 1)) for s in shapes]
        ins = [torch.randint(0, 8, (s[1], 1)) for s in shapes]
        sides = [torch.rand(s[0]) for s in shapes], [torch.rand(s[1]) for s in shapes]
        groups = [1] * len(shapes)
        bits, pace = (out, ins, groups, True), [[0.1] * len(shapes)] * 3
        steps = [torch.tensor(3.0) for _ in shapes]
        scalars = None, None, None, None, 0.0
        plain, moments = (0.0, 0.0, *[False] * 3), (0.9, 0.99, 1e-8, True, False)
        state = made, others, omegas, omegas, steps
        draw = torch.tensor(2.0), 5, [t << 40 for t in range(count)]
        drawn = [
            ("sgd_update_", made, others, [], *bits, *pace, *plain, *scalars, *draw),
            ("adam_update_", *state, *bits, *pace, *moments, *scalars, *draw),
        ]
        for name, *arguments in [
            *(drawn if dtype is torch.bfloat16 else []),
            ("clamp_grads_", made, out, ins, groups, True, "hat", [0.5] * len(shapes), 17),
            ("clamp_grads_", made, out, ins, groups, False, "adahat", [0.5] * len(shapes), 17),
            ("restore_protected_", made, others, out, ins, groups, True),
            ("clamp_grads_soft_", made, *sides, groups, "min"),
            ("sgd_update_", made, others, [], *bits, *pace, *plain, *scalars),
            ("adam_update_", *state, *bits, *pace, *moments, *scalars),
            ("unprotected_norm", made, *bits, None),
            ("mas_accumulate_", omegas, made, 0.25, 0.5, False),
            ("mas_accumulate_", omegas, made, 0.25, 0.5, True),
            ("mas_penalty", made, others, omegas),
            ("mas_penalty_grads_", made, made, others, omegas, None, 2.0, True),
        ]:
            check_once(name, arguments, LIMITS[dtype])


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_wide_layers_of_packed_weights(dtype):
    """As many outputs as make a warp take several rows of the weight; one more than a multiple."""
    sizes = (4097, 16385) if dtype.itemsize == 2 else (4097,)
    for outs, batch, ternary in itertools.product(sizes, (1, 3, 16), (False, True)):
        x, w = torch.randn(batch, 8).to(dtype), torch.randn(outs, 8).to(dtype)
        words = reference.bitmask.pack_mask(torch.randn(outs, 8).round(), ternary)
        check_once("packed_linear", (x, w, words, torch.randn(outs).to(dtype)), LIMITS[dtype])


@pytest.mark.parametrize(
    ("dtype", "outs", "ins"),
    [(torch.float32, 1030, 4100), (torch.bfloat16, 2050, 2049)],
    ids=["float32, vectors", "bfloat16, none"],
)
def test_weights_of_more_than_one_block(dtype, outs, ins):
    """blocks.cuh multiplies a large masked weight by blocks of rows, and of columns."""
    device.set_order("forward")
    assert outs * ins > 1 << 22
    x, g = torch.randn(17, ins).to(dtype), torch.randn(17, outs).to(dtype)
    w, s = torch.randn(outs, ins).to(dtype) / 64, torch.randn(outs, ins)
    words, select = reference.bitmask.pack_mask(s > 0, False), (None, "binary", 0.1, False, 1.0)
    for name, *arguments in [
        ("piggyback_linear", x, w, s, None, *select),
        ("piggyback_linear_backward", g, x, w, s, *select, True, True, True),
        ("packed_linear", x, w, words, None),
        ("linear_importance_", s.abs(), x, g, 0.25, False),
    ]:
        check_once(name, arguments, 5 * LIMITS[dtype])


def test_more_units_than_a_grid_has_threads():
    """Each thread of a grid of 4096 blocks then takes several."""
    device.set_order("forward")
    units = (4096 << 8) + 259
    e, m, g = torch.randn(units), torch.rand(units), torch.randn(units)
    for name, *arguments in [
        ("hat_gate", e, torch.tensor(3.0)),
        ("hat_gate_backward", g, e, m, torch.tensor(3.0), 400.0, 50.0, False),
        ("hat_gates", e, torch.tensor(3.0), m / units, 0.1, 0.75),
        (
            "hat_gates_backward",
            *([g[5:], g[:0]], torch.tensor(0.5), e, torch.tensor(3.0), m, [units - 5, 5]),
            *(0.75, 400.0, 50.0, False),
        ),
        ("hat_sparsity", m, m > 0.5),
        ("hat_sparsity_backward", torch.tensor(0.5), m, m > 0.5),
        ("kth_largest", e, units // 3, True),
    ]:
        check_once(name, arguments, LIMITS[torch.float32])


@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_masks_of_whole_numbers(dtype):
    for count in (1, 31, 33, 5003):
        mask = torch.randint(0, 2, (count,)).to(dtype)
        check("pack_mask", (mask, False), 0)
        check("unpack_mask", (reference.bitmask.pack_mask(mask, False), [count], dtype), 0)
