"""Masked steps of MLPs beside the same network's unmasked step, `python -m benchmarks.steps`.

Arguments: threads, then sizes and optimizers in words, all by default. The steps of all rows come
in turn in one process, second task; medians. A ratio is to the unmasked step with the same
optimizer of torch's (``fused=True``). "careful eager" is HAT's recipe in torch's own operations
with dense masks made once a task; it has no guard, so that momentum and decay move what earlier
tasks need.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import maskcl
from benchmarks.__main__ import commit, processor
from benchmarks.bench_step import SPARSITY, EagerHAT

SIZES = {
    "64-200-200-2": (16, 400),
    "784-400-400-10": (64, 120),
    "784-800-800-10": (64, 60),
    "784-2000-2000-10": (64, 25),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
}
Step = Callable[[], None]


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for ins, outs in itertools.pairwise(widths):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def unmasked(model: nn.Module, optimizer_of: Any, x: Tensor, y: Tensor) -> Step:
    optimizer = optimizer_of(model.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def careful_eager(model: nn.Module, optimizer_of: Any, x: Tensor, y: Tensor) -> Step:
    eager = EagerHAT(model, careful=True)
    eager.optimizer = optimizer_of([*model.parameters(), *eager.embeddings])
    return lambda: eager.step(x, y)


def method_step(
    net: Any, method: Any, optimizer_of: Any, x: Tensor, y: Tensor, begin: Callable[[], None]
) -> Step:
    """A step of the loop in docs/quick-start.md, in the second task."""
    begin()
    state = method.begin_task(net, 1)
    optimizer = optimizer_of(method.parameter_groups(net, 1))
    method.protect(optimizer, net, state)

    def step() -> None:
        method.before_step(net, state, 0.5)
        optimizer.zero_grad()
        with net.task(1, state.scale):
            loss = F.cross_entropy(net(x), y) + method.loss_term(net, state)
            loss.backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)

    return step


def rows(widths: list[int], optimizer_of: Any, x: Tensor, y: Tensor) -> dict[str, Step]:
    """All steps of a table's line, each with a network of its own."""
    heads = [widths[-1]] * 2
    hat_net = maskcl.nn.to_hat(mlp(widths), 2, x, classes=heads).train()
    bits = maskcl.nn.to_piggyback(mlp(widths), 2, classes=heads).train()
    held = maskcl.nn.to_importance(mlp(widths), 2, classes=heads).train()

    def used() -> None:
        with torch.no_grad():
            share = torch.rand_like(hat_net.embeddings[0]) < 0.3
            hat_net.embeddings[0].copy_(torch.where(share, 6.0, -6.0))
        hat_net.finish_task(0)

    def masked() -> None:
        piggyback = maskcl.Piggyback()
        piggyback.begin_task(bits, 0)
        bits.finish_task(0)

    def anchored() -> None:
        held.consolidate(0, {n: torch.ones_like(t) for n, t in held.importances.items()})
        held.finish_task(0)

    run = optimizer_of, x, y
    return {
        "unmasked": unmasked(mlp(widths), *run),
        "careful eager HAT": careful_eager(mlp(widths), *run),
        "maskcl HAT": method_step(hat_net, maskcl.HAT(sparsity=SPARSITY), *run, used),
        "maskcl Piggyback": method_step(bits, maskcl.Piggyback(), *run, masked),
        "maskcl MAS": method_step(held, maskcl.MAS(), *run, anchored),
    }


def medians(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of each step, taken in turn."""
    for _ in range(10):
        for step in steps.values():
            step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def main(threads: int, words: list[str]) -> None:
    """Print a line for each size and optimizer."""
    torch.set_num_threads(threads)
    print(f"{processor()}, torch {torch.__version__}, threads {threads}, commit {commit()}")
    sizes = [size for size in SIZES if size in words] or list(SIZES)
    optimizers = [name for name in OPTIMIZERS if name in words] or list(OPTIMIZERS)
    for size in sizes:
        batch, rounds = SIZES[size]
        widths = [int(width) for width in size.split("-")]
        for name in optimizers:
            torch.manual_seed(0)
            x, y = torch.rand(batch, widths[0]), torch.randint(0, widths[-1], (batch,))
            found = medians(rows(widths, OPTIMIZERS[name], x, y), rounds)
            base = found.pop("unmasked")
            ratios = ", ".join(f"{row} {seconds / base:.2f}" for row, seconds in found.items())
            print(f"{size}, batch {batch}, {name}: {1e6 * base:.0f} us; {ratios}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, sys.argv[2:])
