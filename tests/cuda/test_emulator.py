"""The emulator itself: it runs a right kernel, and says what is wrong with each of faults.cu."""

from __future__ import annotations

import ctypes
import re

import pytest

from tests.cuda.emulator import build, device
from tests.cuda.emulator.rewrite import RewriteError, rewrite

pytestmark = pytest.mark.skipif(build.absent() is not None, reason=str(build.absent()))
FOLDER = build.HOST.parent
ORDERS = device.ORDERS[:4]


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    sources = {"faults.cu": (FOLDER / "faults.cu").read_text()}
    loaded = ctypes.CDLL(str(build.library(sources, FOLDER)))
    loaded.run_kernel.restype = ctypes.c_char_p
    return loaded


def run(library: ctypes.CDLL, name: str, order: str = "any") -> tuple[str, list[int]]:
    library.emulator_order(device.ORDERS.index(order), ctypes.c_uint64(3))
    out = (ctypes.c_int * 64)(*[-9] * 64)
    return library.run_kernel(name.encode(), out).decode(), list(out)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (
            "half_at_a_barrier",
            r"thread 1 waits for its block at .*faults\.cu:12, thread 0 has ended",
        ),
        (
            "at_two_barriers",
            r"at .*faults\.cu:17, thread 32 waits for its block at .*faults\.cu:19",
        ),
        ("lane_leaves", r"waits for its warp at .*faults\.cu:23, thread 7 has ended"),
        ("part_of_a_warp", "a call of part of a warp"),
        ("traps", r"__trap\(\)"),
        ("takes_too_much", "a block has 50000 bytes of shared memory"),
        ("large block", "a block has 257 threads"),
        ("large grid", "the grid is too large"),
        ("no grid", "the grid is empty"),
        ("other stream", "the stream is not of the current device"),
        ("no check", "no check follows its launch"),
    ],
)
def test_faults_are_named(library, kernel, says):
    for order in ORDERS:
        found = run(library, kernel, order)[0]
        assert re.search(says, found), (order, found)


def test_a_right_kernel_is_right_in_every_order(library):
    for order in ORDERS:
        assert run(library, "reverses", order) == ("", list(reversed(range(64))))


def test_a_missing_barrier_shows_in_some_order(library):
    right = list(reversed(range(64)))
    wrong = [order for order in ORDERS if run(library, "misses_a_barrier", order)[1] != right]
    assert "ahead" in wrong and "forward" in wrong


def test_shared_memory_is_garbage_when_a_block_begins(library):
    for order in ORDERS:
        assert run(library, "reads_what_it_did_not_write", order)[1][:4] == [-1] * 4


@pytest.mark.parametrize(
    "line",
    [
        "__global__ void kernel() {}",
        "extern __shared__ float dynamic[];",
        'asm("bar.sync 0;");',
        'asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0};" : "+f"(a));',
    ],
)
def test_what_the_rewriter_does_not_know_is_an_error(line):
    with pytest.raises(RewriteError):
        rewrite(line, "a.cu")


def test_lines_stay_where_they_are():
    text = "a\n  kernel<T, f(1)>\n    <<<1, f(2)>>>(x);\n__shared__ T a[2], b[N][3];\n"
    found = rewrite(text, "b.cu").split("\n")[1:]
    assert len(found) == text.count("\n") + 1
    assert "emulator::Kernel<(kernel<T, f(1)>)>" in found[1] and "{{1, f(2)}}(x);" in found[2]
    assert "emulator::shared(&b_here, sizeof(T[N][3]), alignof(T[N][3]))" in found[3]
