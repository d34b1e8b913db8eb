"""One pass of importances over samples: exact, |the batch's gradient|, and one sample at a time.

The rows of the table are of one batch and without the comparison that an exact pass begins with;
`python -m benchmarks.bench_importance_pass [samples]` takes turns over whole passes, comparison
included, and times the loop of single samples on a hundredth of them.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.__main__ import commit, processor
from benchmarks.conftest import device
from benchmarks.paired import seconds
from maskcl import models
from maskcl.importance import estimate

BATCH, CLASSES, ROUNDS = 250, 10, 3


def conv_net():
    """Three 3x3 convolutions, 3-32-64-128 channels, each halving the picture after it."""
    layers = []
    for ins, outs in [(3, 32), (32, 64), (64, 128)]:
        layers += [nn.Conv2d(ins, outs, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, CLASSES))


NETWORKS = {
    "MLP 784-2000-2000-10": (
        lambda: models.mlp((784,), CLASSES, hidden=(2000, 2000), dropout=0.0),
        (784,),
    ),
    "conv net 3-32-64-128, 3x32x32": (conv_net, (3, 32, 32)),
}


def exact(model, batches, check=False):
    return estimate(model, batches, check=check)


def of_batches(model, batches):
    return estimate(model, batches, reduction="batch")


def written(model, batches):
    """|the gradient of the batch's mean|, as it is written with torch's own calls."""
    model.eval()
    omegas = [torch.zeros_like(p) for p in model.parameters()]
    count = 0
    for x in batches:
        model.zero_grad()
        model(x).square().sum(1).mean().backward()
        for omega, p in zip(omegas, model.parameters(), strict=True):
            omega += p.grad.abs() * len(x)
        count += len(x)
    return [omega / count for omega in omegas]


def one_by_one(model, batches):
    return written(model, [sample for x in batches for sample in x.split(1)])


WAYS = {
    "maskcl": exact,
    "maskcl, reduction batch": of_batches,
    "batch, written out": written,
    "one sample at a time": one_by_one,
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("network", NETWORKS)
def test_pass(timed, network, name):
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model, batches = build().to(device()), [torch.randn(BATCH, *shape, device=device())]
    timed(f"importances, {network}, {BATCH} samples", name, lambda: WAYS[name](model, batches))


def main(samples: int) -> None:
    """Print medians and ratios of whole passes."""
    torch.set_num_threads(2)
    print(f"{processor()}, torch {torch.__version__}, {ROUNDS} rounds, commit {commit()}")
    for network, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        model = build().to(device())
        batches = torch.randn(samples, *shape, device=device()).split(BATCH)
        single = [torch.cat(batches)[: max(1, samples // 100)]]
        of_all = {
            "exact": partial(exact, model, batches, check=True),
            "batch": partial(of_batches, model, batches),
            "batch, written out": partial(written, model, batches),
        }
        for run in of_all.values():
            run()
        taken = [{k: seconds(run) for k, run in of_all.items()} for _ in range(ROUNDS)]
        loop = seconds(partial(one_by_one, model, single)) * samples / len(single[0])
        print(f"\n{network}, {samples} samples in batches of {BATCH}")
        for name in of_all:
            median = statistics.median(t[name] for t in taken)
            ratio = statistics.median(t["exact"] / t[name] for t in taken)
            print(f"  {name:24}{median:9.3f} s   exact is {ratio:.2f} of it")
        ours = statistics.median(t["exact"] for t in taken)
        print(f"  {'one sample at a time':24}{loop:9.3f} s   {loop / ours:.1f} times exact")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
