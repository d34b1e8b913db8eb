"""Accuracy of Piggyback by how scores are kept and how steps of them are rounded.

    python -m benchmarks.score_dtypes

One mask of a random MLP 64-100-100-10, its last layer masked too, so that all that is learned is in
scores; scikit-learn's handwritten digits, a fifth held out, five seeds. Adam's step is about as
long as its rate: the first is a usual one, the second below the 3e-5 that nearest rounding of
bfloat16 loses at 1e-2, where scores start.
"""

from __future__ import annotations

import statistics
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from maskcl.nn import to_piggyback
from maskcl.optim import Adam

BATCH = 64
SEEDS = range(5)
PLANS = [(1e-3, 100), (2e-5, 300)]


class Way(NamedTuple):
    """How scores are kept.

    Attributes:
        dtype: of scores and Adam's moments.
        rounding: of both.
    """

    dtype: torch.dtype | None
    rounding: str


WAYS = {
    "float32": Way(None, "nearest"),
    "bfloat16, to nearest": Way(torch.bfloat16, "nearest"),
    "bfloat16, at random": Way(torch.bfloat16, "stochastic"),
}


def learn(seed: int, way: Way, rate: float, steps: int) -> tuple[float, float]:
    """Test accuracy, and the mean of the layers' shares of weights that are off, both in %."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(len(images), generator=generator)
    train, test = order[:1437], order[1437:]
    layers = nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    net = to_piggyback(nn.Sequential(*layers), 1)
    net.begin_task(0, score_dtype=way.dtype)
    optimizer = Adam(net.task_parameters(0), rate, rounding=way.rounding, seed=seed)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (BATCH,), generator=generator)]
        with net.task(0):
            loss = F.cross_entropy(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    net.finish_task(0)
    with torch.no_grad(), net.eval().task(0):
        right = net(images[test]).argmax(1) == labels[test]
    off = net.off(0).values()
    return 100 * right.float().mean().item(), 100 * statistics.mean(off)


def main() -> None:
    """Print the table."""
    warnings.filterwarnings("ignore", message=".*scores are bfloat16")
    print("| Adam's rate | scores | accuracy, % | off, % |")
    print("| --- | --- | --- | --- |")
    for rate, steps in PLANS:
        for name, way in WAYS.items():
            found = [learn(seed, way, rate, steps) for seed in SEEDS]
            accuracy, off = zip(*found, strict=True)
            mean, spread = statistics.mean(accuracy), statistics.stdev(accuracy)
            plan = f"{rate:g}, {steps} steps"
            cells = plan, name, f"{mean:.1f} +- {spread:.1f}", f"{statistics.mean(off):.1f}"
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
