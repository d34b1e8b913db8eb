"""One batch under the hard masks of five tasks, beside one network's and compact ones' forwards.

The rows take turns, call by call. `python -m benchmarks.bench_task_masks [rounds]` does so in one
process on one thread, and prints medians and ratios to one dense forward.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import device
from benchmarks.paired import compare
from maskcl import models
from maskcl.export import compact
from maskcl.nn import to_hat

TASKS, OPEN = 5, 0.4
# Inputs, hidden widths, classes of a head, and the batch.
SHAPES = {
    "MLP 784-400-400-10": (784, (400, 400), 10, 64),
    "MLP 64-200-200-2": (64, (200, 200), 2, 16),
}
NAMES = ["no mask", "no mask, a forward a task", "compact networks", "forward_tasks"]
Forward = Callable[[], object]


def forwards(network: str) -> dict[str, Forward]:
    """Each row's forward of the same batch; the networks of one row share nothing."""
    torch.manual_seed(0)
    inputs, hidden, classes, batch = SHAPES[network]
    x = torch.randn(batch, inputs, device=device())
    dense = models.mlp((inputs,), classes, hidden=hidden).to(device()).eval()
    net = to_hat(dense, TASKS, x[:2], classes=[classes] * TASKS).eval()
    for task, embedding in enumerate(net.embeddings):
        with torch.no_grad():
            embedding.copy_(OPEN - torch.rand_like(embedding))
        net.finish_task(task)
    small = [compact(net, task).eval() for task in range(TASKS)]

    def each() -> list[Tensor]:
        return [dense(x) for _ in range(TASKS)]

    rows: list[Forward] = [
        lambda: dense(x),
        each,
        lambda: [one(x) for one in small],
        lambda: net.forward_tasks(x),
    ]
    return {name: torch.no_grad()(row) for name, row in zip(NAMES, rows, strict=True)}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", SHAPES)
def test_task_masks(timed, network, name):
    _, _, _, batch = SHAPES[network]
    timed(f"{network}, batch {batch}, {TASKS} tasks", name, forwards(network)[name])


def main(rounds: int) -> None:
    """Print medians and ratios of interleaved calls."""
    torch.set_num_threads(1)
    for network in SHAPES:
        compare(f"{network}, {TASKS} tasks, {OPEN:.0%} open", forwards(network), rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
