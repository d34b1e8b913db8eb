"""Whole training steps in turn, `python -m benchmarks.paired [rounds]`.

A step takes long enough for a shared machine to change under it: here the networks step one after
the other in every round, and the ratios are medians over rounds of steps that ran side by side.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from benchmarks import bench_graph_step as graphs
from benchmarks import bench_piggyback_step as piggyback
from benchmarks.__main__ import commit, processor
from benchmarks.bench_step import BATCH, NETWORKS, EagerHAT, maskcl_step, plain_step
from benchmarks.conftest import device


def steps_of(network: str) -> dict[str, Callable[[], None]]:
    """The same step with and without masks, each on a network of its own."""
    build, shape = NETWORKS[network]
    x = torch.rand(BATCH, *shape, device=device())
    y = torch.randint(0, 10, (BATCH,), device=device())
    models = [build().to(device()).train() for _ in range(4)]
    steps = {
        "no mask": plain_step(models[0]),
        "maskcl": maskcl_step(models[1], x),
        "careful eager": EagerHAT(models[2], careful=True).step,
        "masks on the fly": EagerHAT(models[3], careful=False).step,
    }
    return {name: lambda step=step: step(x, y) for name, step in steps.items()}


def piggyback_steps(layer: str) -> dict[str, Callable[[], None]]:
    """The same step through an ordinary layer and through masked ones."""
    build, shape = piggyback.LAYERS[layer]
    x, grad = piggyback.inputs(shape, build)

    def run(step):
        x.grad = None
        step(x, grad)

    names = ["no mask", *(name for name in piggyback.NAMES if name != "no mask")]
    steps = {name: piggyback.step_of(name, build) for name in names}
    return {name: lambda step=step: run(step) for name, step in steps.items()}


def seconds(function: Callable[[], None]) -> float:
    """Wall time of one call, the device's work included."""
    start = time.perf_counter()
    function()
    if device() == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    """Print medians and ratios."""
    torch.set_num_threads(2)
    print(f"{processor()}, torch {torch.__version__}, {rounds} rounds, commit {commit()}")
    for network in NETWORKS:
        torch.manual_seed(0)
        compare(f"{network}, batch {BATCH}, SGD", steps_of(network), rounds)
    for layer in piggyback.LAYERS:
        torch.manual_seed(0)
        compare(f"Piggyback, {layer}, SGD", piggyback_steps(layer), rounds)
    compare(graphs.TITLE, {name: graphs.step_of(name) for name in graphs.NAMES}, rounds)


def compare(
    title: str, steps: dict[str, Callable[[], None]], rounds: int
) -> list[dict[str, float]]:
    """Time the steps in turn and print each one's median and its ratio to the unmasked step.

    Returns:
        The seconds of each step, round by round.
    """
    for _ in range(3):
        for step in steps.values():
            step()
    taken = [{name: seconds(step) for name, step in steps.items()} for _ in range(rounds)]
    print(f"\n{title}\n  {'':30}{'ms':>9}{'of no mask':>12}")
    for name in steps:
        milliseconds = statistics.median(t[name] for t in taken) * 1e3
        ratio = statistics.median(t[name] / t["no mask"] for t in taken)
        print(f"  {name:30}{milliseconds:9.2f}{ratio:12.3f}")
    return taken


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
