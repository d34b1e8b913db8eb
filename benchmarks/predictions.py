"""On a GPU: what the model predicts for each kernel, what it takes, the ratio; then whole steps.

``python -m benchmarks.predictions [--save] [--seconds=120]`` (a part of `make gpu`). Each call is
timed by events of its own, behind a write that empties L2, the median of REPEATS. Steps are timed
eager, with the network compiled, and as one CUDA graph, beside the unmasked network's. What fails
is a row without a time, and makes the exit status 1; what no time is left for is left out. --save
adds the rows to benchmarks/results/cuda.csv.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks import model, training_steps
from benchmarks.__main__ import facts, save
from benchmarks.gpus import ALL, GPU
from benchmarks.passes_of_bits import OF
from maskcl import backends

REPEATS, WARM = 20, 3
FLUSH = 256 << 20  # bytes: more than any L2
MODES = ("eager", "CUDA graph", "torch.compile")  # what takes longest to begin is last
Row = dict[str, Any]


class Timer(Protocol):
    """Times calls; tests have one that needs no GPU."""

    def seconds(self, function: Callable[[], object]) -> list[float]:
        """Of each of several calls."""


class Events:
    """Times on the device; ``flush``: with an empty L2."""

    def __init__(self, flush: bool) -> None:
        self.flush = torch.empty(FLUSH if flush else 0, dtype=torch.uint8, device="cuda")

    def seconds(self, function: Callable[[], object]) -> list[float]:
        for _ in range(WARM):
            function()
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPEATS)]
        for begin, end in pairs:
            if self.flush.numel():
                self.flush.zero_()
            begin.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in pairs]


def gpu_of(name: str) -> GPU | None:
    """The published facts of a device of this name."""
    return next((gpu for gpu in ALL if gpu.name in name), None)


def real(arguments: Any, device: str) -> Any:
    """Tensors with values in the place of shapes: bits at random, task words 0 or 1."""

    def fill(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        if a.dtype.is_floating_point:
            return torch.randn(a.shape, dtype=torch.float32, device=device).to(a.dtype)
        low, high = (0, 2) if a.dtype == torch.int64 else (-(2**31), 2**31 - 1)
        return torch.randint(low, high, a.shape, dtype=a.dtype, device=device)

    return tree_map(fill, arguments)


def row(group: str, name: str, seconds: list[float] | None, ours: float | None) -> Row:
    """As benchmarks/results have it; ``ours``: seconds of the row that ratios refer to."""
    made: Row = dict.fromkeys(("median_ms", "p25_ms", "p75_ms", "ratio", "gb_per_s", "of_memcpy"))
    made |= {"group": group, "name": name}
    if seconds:
        low, middle, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
        made |= {"median_ms": 1e3 * middle, "p25_ms": 1e3 * low, "p75_ms": 1e3 * high}
        made["ratio"] = middle / ours if ours else None
    return made


def timed(group: str, function: Callable[[], object], timer: Timer) -> list[float] | None:
    """Seconds, or None and a line that says what went wrong."""
    try:
        return timer.seconds(function)
    except Exception as error:  # whatever it is, the next row may do
        print(f"{group}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
        return None


def kernels(timer: Timer, gpu: GPU | None, device: str, names: list[str]) -> Iterator[list[Row]]:
    """A group an op: measured on each backend, and predicted over measured."""
    for size, (op, shapes) in model.calls():
        group = f"model, {op}, {size}"
        rows: list[Row] = []
        arguments = real(shapes, device)
        for name in names:
            call = backends._TABLE[name][op]
            seconds = timed(group, lambda call=call, a=arguments: call(*a), timer)  # type: ignore[misc]
            ours = rows[0]["median_ms"] / 1e3 if rows and rows[0]["median_ms"] else None
            rows.append(row(group, f"maskcl {name}" if rows else "maskcl", seconds, ours))
        first = rows[0]["median_ms"]
        if gpu is not None:
            predicted = model.predict(OF[op](*shapes), gpu)
            rows.append(row(group, "predicted", [predicted], first and first / 1e3))
        yield rows


def captured(step: training_steps.Step, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step as one CUDA graph, warmed up on a stream of its own as torch wants it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            step(x, y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(x, y)
    return graph.replay


def step_of(mode: str, method: str, setting: training_steps.Setting) -> Callable[[], object]:
    """One step of a method, or of the unmasked network (""), in one of MODES."""
    build = training_steps.masked if method else (lambda _, s: training_steps.unmasked(s))
    step, (x, y) = build(method, setting), setting.data()
    return captured(step, x, y) if mode == "CUDA graph" else lambda: step(x, y)


def steps(timer: Timer, device: str, modes: tuple[str, ...] = MODES) -> Iterator[list[Row]]:
    """A group a network and mode: each method beside no mask."""
    for mode in modes:
        for network in training_steps.NETWORKS:
            group = f"step, {network}, batch {model.BATCH}, AdamW, {mode}"
            options = {"compiled": mode == "torch.compile", "capturable": device == "cuda"}
            setting = training_steps.Setting(network, device, model.BATCH, **options)
            rows: list[Row] = []
            for method in ("", *training_steps.METHODS):
                torch.compiler.reset()
                made: list[Callable[[], object]] = []

                def run(method=method, made=made, mode=mode, setting=setting) -> object:
                    made or made.append(step_of(mode, method, setting))
                    return made[0]()

                seconds = timed(f"{group}, {method}", run, timer)
                base = rows[0]["median_ms"] if rows else None
                rows.append(row(group, method or "no mask", seconds, base and base / 1e3))
            yield rows


def collect(parts: Iterator[list[Row]], deadline: float) -> list[Row]:
    """Rows printed as they come, until there is no time for more."""
    found: list[Row] = []
    for rows in parts:
        print(rows[0]["group"])
        for r in rows:
            time_of = "failed" if r["median_ms"] is None else f"{1e3 * r['median_ms']:.1f} us"
            print(f"  {r['name']:16}{time_of:>14}{r['ratio'] or 1.0:9.2f}", flush=True)
        found += rows
        if time.monotonic() > deadline:
            print("no time is left for the rest")
            break
    return found


def main(arguments: list[str]) -> int:
    """Measure and print; 1 where something failed, 2 without a GPU."""
    if not torch.cuda.is_available():
        print("no GPU here (torch.cuda.is_available() is not true)", file=sys.stderr)
        return 2
    given = [a.split("=")[1] for a in arguments if a.startswith("--seconds=")]
    begin, seconds = time.monotonic(), float(given[0]) if given else 120.0
    gpu = gpu_of(torch.cuda.get_device_name())
    names = [n for n in ("cuda", "triton") if backends.BACKENDS[n].absent is None]
    rows = collect(kernels(Events(flush=True), gpu, "cuda", names), begin + seconds / 3)
    rows += collect(steps(Events(flush=False), "cuda"), begin + seconds)
    if "--save" in arguments:
        save(rows, facts(), "cuda")
    return int(any(r["median_ms"] is None for r in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
