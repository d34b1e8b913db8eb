"""What `instructions.py` counts, run by it under valgrind: `python -m benchmarks.counted LIBRARY`.

The instructions of all calls of a piece go into a dump of callgrind's that is named after it.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from maskcl.bench import METHODS, Setting, cases
from maskcl.bench.case import differentiated
from maskcl.bench.step_times import steps_of

# The second is so small that nearly all of its step is calls.
SIZES = {"64-200-200-2": 16, "8-8-8-2": 2}
SMALL = "8-8-8-2"
ROWS = {("", "unmasked, fused"): "unmasked"} | {(m, "maskcl"): m for m in METHODS}
OF_STEPS, OF_OPS = 5, 20  # times that a piece is run
# A step that has become dearer, for the test to see that it would be noticed.
PLANTED, DEARER_THAN, LOOPS = "step 64-200-200-2, MAS and a loop", "step 64-200-200-2, MAS", 5000


class Piece(NamedTuple):
    """A function that is counted, and how often it is called for that."""

    function: Callable[[], Any]
    times: int


def looped(step: Callable[[], None]) -> Callable[[], None]:
    """The step and a loop of Python's that does nothing."""

    def dearer() -> None:
        step()
        for _ in range(LOOPS):
            pass

    return dearer


def base_of(piece: str) -> str:
    """The unmasked step that a piece is set against: an op's call has no work in kernels either."""
    size = piece.split()[1].rstrip(",") if piece.startswith("step ") else SMALL
    return f"step {size}, unmasked"


def steps() -> dict[str, Piece]:
    """Training steps of each size."""
    made = {}
    for size, batch in SIZES.items():
        found = steps_of(Setting(size, batch), METHODS)
        for row, method in ROWS.items():
            made[f"step {size}, {method}"] = Piece(found[row], OF_STEPS)
    scheduled = steps_of(Setting(SMALL, SIZES[SMALL], schedule=True), ("HAT",))
    made[f"step {SMALL}, HAT, a rate a step"] = Piece(scheduled["HAT", "maskcl"], OF_STEPS)
    made[PLANTED] = Piece(looped(made[DEARER_THAN].function), OF_STEPS)
    return made


def of_ops() -> dict[str, Piece]:
    """Each op's call, and its call with its backward where it has one."""
    made = {}
    for op in cases():
        made[op] = Piece(cases()[op].ours, OF_OPS)
        call = cases()[op]  # of tensors of its own, which want gradients
        if call.wrt:
            backward = differentiated(call.ours, call.wrt)
            made[f"{op}, forward + backward"] = Piece(backward, OF_OPS)
    return made


def main(library: str) -> None:
    """Count; what is made once is made before."""
    requests = ctypes.CDLL(library)
    if not requests.on_valgrind():
        raise SystemExit("not under valgrind: python -m benchmarks.instructions starts this")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = steps() | of_ops()
    for function, _ in made.values():
        for _ in range(3):
            function()
    gc.collect()
    gc.disable()  # or a piece pays for what others left
    requests.start()
    for name, (function, times) in made.items():
        function()
        requests.zero()
        for _ in range(times):
            function()
        requests.dump(f"{times} x {name}".encode())


if __name__ == "__main__":
    main(sys.argv[1])
