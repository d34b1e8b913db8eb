"""Accuracy of Piggyback by how scores are kept and how steps of them are rounded.

    python -m benchmarks.score_dtypes

One mask of a random MLP 64-200-200-10, its last layer masked too, so that all that is learned is in
scores; scikit-learn's handwritten digits, a fifth held out, five seeds. The rates are such that a
step is about as long as what nearest rounding of bfloat16 loses, 3e-5 at 1e-2, and shorter.
"""

from __future__ import annotations

import statistics
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from maskcl import optim
from maskcl.nn import to_piggyback

BATCH = 128
SEEDS = range(5)
PLANS = [("Adam", 3e-5, 400), ("SGD", 0.1, 400)]


class Way(NamedTuple):
    """How scores are kept.

    Attributes:
        dtype: of scores. rounding: of them. state: of the optimizer's moments, None: the scores'.
    """

    dtype: torch.dtype | None
    rounding: str
    state: torch.dtype | None


WAYS = {
    "float32": Way(None, "nearest", None),
    "bfloat16, to nearest, float32 moments": Way(torch.bfloat16, "nearest", torch.float32),
    "bfloat16, at random": Way(torch.bfloat16, "stochastic", None),
    "bfloat16, at random, float32 moments": Way(torch.bfloat16, "stochastic", torch.float32),
}


def learn(seed: int, way: Way, kind: str, rate: float, steps: int) -> tuple[float, float]:
    """Test accuracy, and the mean of the layers' shares of weights that are off, both in %."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images, labels = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    order = torch.randperm(len(images), generator=generator)
    train, test = order[:1437], order[1437:]
    layers = nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10)
    net = to_piggyback(nn.Sequential(*layers), 1)
    net.begin_task(0, score_dtype=way.dtype)
    options: dict[str, Any] = {"momentum": 0.9} if kind == "SGD" else {}
    options |= {"rounding": way.rounding, "state_dtype": way.state, "seed": seed}
    optimizer = getattr(optim, kind)(net.task_parameters(0), rate, **options)
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
    print("| optimizer | scores | accuracy, % | off, % |")
    print("| --- | --- | --- | --- |")
    for kind, rate, steps in PLANS:
        for name, way in WAYS.items():
            found = [learn(seed, way, kind, rate, steps) for seed in SEEDS]
            accuracy, off = zip(*found, strict=True)
            mean, spread = statistics.mean(accuracy), statistics.stdev(accuracy)
            plan = f"{kind} {rate:g}, {steps} steps"
            cells = plan, name, f"{mean:.1f} +- {spread:.1f}", f"{statistics.mean(off):.1f}"
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
