"""What a compact network saves: parameters, floating-point operations, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskcl.export.compact_network import Network, compact, example_of
from maskcl.nn import to_plain
from maskcl.nn.following.arguments import arguments_of, call


@dataclass(frozen=True)
class Cost:
    """Of one network.

    Attributes:
        parameters: how many numbers.
        flops: floating-point operations of a call, two for a multiplication with its addition;
            those of layers and products alone.
        seconds: of a call, the median.
    """

    parameters: int
    flops: int
    seconds: float


@dataclass(frozen=True)
class Report:
    """A task's network at full size and compact, on the same inputs.

    Attributes:
        task: whose.
        full: of ``to_plain``, the fastest that the full size can be.
        compact: of ``compact``.
        difference: largest between the two's outputs, absolute.
        shapes: of the inputs that are tensors.
        where: the device, and the threads of a CPU.
    """

    task: int
    full: Cost
    compact: Cost
    difference: float
    shapes: tuple[tuple[int, ...], ...]
    where: str

    @property
    def speedup(self) -> float:
        """How many times faster the compact network is."""
        return self.full.seconds / self.compact.seconds

    def __str__(self) -> str:
        rows = [
            ("", "full", "compact", "full / compact"),
            _row("parameters", self.full.parameters, self.compact.parameters, "{:,}"),
            _row("FLOPs", self.full.flops, self.compact.flops, "{:,}"),
            _row("ms", 1e3 * self.full.seconds, 1e3 * self.compact.seconds, "{:.3f}"),
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        ]
        sizes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in self.shapes)
        lines.append(
            f"task {self.task}, inputs {sizes}, {self.where}, median of calls;"
            f" outputs differ by {self.difference:.1e} at most"
        )
        return "\n".join(line.rstrip() for line in lines)


def report(net: Network, task: int, example_inputs: Any = None, *, repeats: int = 30) -> Report:
    """Measure a task's network at full size and compact.

    Args:
        net: as for ``compact``.
        task: likewise.
        example_inputs: what to call both with, such as a batch of 64; None for zeros of the shapes
            that a HATNetwork was made with.
        repeats: calls that are timed, after a few that are not; the two take turns.

    Raises:
        ValueError, RuntimeError, ConversionError: as for ``compact``; repeats is not above 0.
    """
    inputs = example_of(net, example_inputs)
    return compare(task, to_plain(net, task), compact(net, task, inputs), inputs, repeats=repeats)


def compare(
    task: int, full: nn.Module, small: nn.Module, inputs: Any, *, repeats: int = 30
) -> Report:
    """A Report of two networks that are there already; arguments as for ``report``."""
    if repeats < 1:
        raise ValueError(f"report: repeats is {repeats}, wanted at least 1")
    arguments = arguments_of(inputs)
    models = (full, small)
    with torch.inference_mode():
        outputs = [call(model, arguments) for model in models]
        flops = [_flops(model, arguments) for model in models]
        seconds = _seconds(models, arguments, repeats)
    costs = [
        Cost(sum(p.numel() for p in model.parameters()), flop, second)
        for model, flop, second in zip(models, flops, seconds, strict=True)
    ]
    tensors = _tensors(arguments)
    device = tensors[0].device if tensors else torch.device("cpu")
    where = f"cpu, threads {torch.get_num_threads()}" if device.type == "cpu" else str(device)
    shapes = tuple(tuple(x.shape) for x in tensors)
    return Report(task, costs[0], costs[1], _difference(*outputs), shapes, where)


Arguments = tuple[Any, ...] | dict[str, Any]


def _tensors(arguments: Arguments) -> list[Tensor]:
    given = arguments.values() if isinstance(arguments, dict) else arguments
    return [x for x in given if isinstance(x, Tensor)]


def _flops(model: nn.Module, arguments: Arguments) -> int:
    with FlopCounterMode(display=False) as counter:
        call(model, arguments)
    return int(counter.get_total_flops())


def _seconds(models: Sequence[nn.Module], arguments: Arguments, repeats: int) -> list[float]:
    """Median seconds of a call of each, in turns."""
    tensors = _tensors(arguments)
    on_gpu = any(x.is_cuda for x in tensors)
    times: list[list[float]] = [[] for _ in models]
    for turn in range(min(repeats, 3) + repeats):
        for model, found in zip(models, times, strict=True):
            start = time.perf_counter()
            call(model, arguments)
            if on_gpu:
                torch.cuda.synchronize()
            if turn >= min(repeats, 3):
                found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def _difference(one: Any, other: Any) -> float:
    """Largest absolute difference between two outputs of the same form."""
    if isinstance(one, Tensor):
        return float((one - other).abs().max()) if one.numel() else 0.0
    if isinstance(one, dict):
        keys = [key for key in one if key in other]
        one, other = [one[key] for key in keys], [other[key] for key in keys]
    return max((_difference(a, b) for a, b in zip(one, other, strict=True)), default=0.0)


def _row(name: str, full: float, small: float, form: str) -> tuple[str, str, str, str]:
    ratio = f"{full / small:.2f}" if small else "-"
    return name, form.format(full), form.format(small), ratio
