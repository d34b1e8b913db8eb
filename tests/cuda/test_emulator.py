"""The emulator itself: it runs a right kernel, and says what is wrong with each of faults.cu.

By each compiler and on each processor that it is for, of those that this machine has.
"""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.cuda.emulator import build, device
from tests.cuda.emulator.rewrite import RewriteError, rewrite

pytestmark = pytest.mark.skipif(build.absent() is not None, reason=str(build.absent()))
ORDERS = device.ORDERS[:4]
FAULTS = {
    "half_at_a_barrier": r"thread 1 waits for its block at .*faults\.cu:14, thread 0 has ended",
    "at_two_barriers": r"at .*faults\.cu:19, thread 32 waits for its block at .*faults\.cu:21",
    "lane_leaves": r"waits for its warp at .*faults\.cu:25, thread 7 has ended",
    "part_of_a_warp": "a call of part of a warp",
    "traps": r"traps>, block 0,0: __trap\(\)",
    "takes_too_much": "a block has 50000 bytes of shared memory",
    "large block": "a block has 257 threads",
    "large grid": "the grid is too large",
    "no grid": "the grid is empty",
    "other stream": "the stream is not of the current device",
    "no check": "no check follows its launch",
}
KERNELS = [*FAULTS, "reverses", "misses_a_barrier", "reads_what_it_did_not_write"]

# The words that start a compiler, and those that run what it makes.
BUILDS: dict[str, tuple[list[str], list[str]]] = {
    "default": (build.compiler(), []),
    "ucontext": ([*build.compiler(), "-DEMULATOR_UCONTEXT"], []),  # as on other processors
    "clang": (["clang++"], []),
    "aarch64": (["aarch64-linux-gnu-g++", "-static"], ["qemu-aarch64"]),
}
Answers = dict[tuple[str, str], tuple[str, list[int]]]


@pytest.fixture(scope="module", params=BUILDS)
def answers(request: pytest.FixtureRequest) -> Answers:
    """For each kernel and order: what the emulator said was wrong, and what the kernel wrote."""
    by, runner = BUILDS[request.param]
    for program in (by[0], *runner):
        if shutil.which(program) is None:
            pytest.skip(f"{program} was not found")
    built = build.program(build.HOST.parent / "faults.cu", by)
    asked = [(kernel, order) for kernel in KERNELS for order in ORDERS]
    lines = "".join(f"{ORDERS.index(order)} {kernel}\n" for kernel, order in asked)
    command = [*runner, str(built)]
    ran = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    answered = [line.split(" ", 64) for line in ran.stdout.splitlines()]
    assert len(answered) == len(asked), ran.stderr
    return {ask: (words[64], [int(n) for n in words[:64]]) for ask, words in zip(asked, answered)}


@pytest.mark.parametrize(("kernel", "says"), FAULTS.items(), ids=FAULTS)
def test_faults_are_named(answers, kernel, says):
    for order in ORDERS:
        found = answers[kernel, order][0]
        assert re.search(says, found), (order, found)


def test_a_right_kernel_is_right_in_every_order(answers):
    for order in ORDERS:
        assert answers["reverses", order] == ("", list(reversed(range(64))))


def test_a_missing_barrier_shows_in_some_order(answers):
    right = list(reversed(range(64)))
    wrong = [order for order in ORDERS if answers["misses_a_barrier", order][1] != right]
    assert "ahead" in wrong and "forward" in wrong


def test_shared_memory_is_garbage_when_a_block_begins(answers):
    for order in ORDERS:
        assert answers["reads_what_it_did_not_write", order][1][:4] == [-1] * 4


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
